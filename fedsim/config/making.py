"""What a config chooses, made: the data set, the partition, skewed inputs and the strategy."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from fedsim.config.choices import CATALOGUES, method_name
from fedsim.config.config import Config
from fedsim.config.custom import imported_sources
from fedsim.config.tables import DataConfig, FeaturesConfig
from fedsim.data.checks import check_dataset
from fedsim.data.dataset import Dataset, plain
from fedsim.data.map_style import as_dataset
from fedsim.data.tasks import with_task
from fedsim.errors import ConfigError, error_line
from fedsim.models.layers import LayerGroup
from fedsim.options import as_toml
from fedsim.shortening import a_type
from fedsim.strategy import ClientRule, Phase, Strategy
from fedsim.strategy.factor_checks import check_factors
from fedsim.strategy.forgotten import check_stateless
from fedsim.training import LocalPlan, LocalSettings
from fedsim.training.parameter_groups import scales
from fedsim.training.tasks import OPTIMIZERS
from partitions import Partition, Split

# Settings that change where a step goes, and not only how far; and those that make it no sum of gradients.
NOT_PLAIN = ("optimizer", "momentum", "weight_decay", "clip_norm", "lr_scale")
NOT_LINEAR = ("optimizer", "clip_norm", "lr_scale")
CHECKED_ROUNDS = 10_000  # what a strategy does in later rounds is left to the run


def make_dataset(data: DataConfig) -> Dataset:
    """Read the data set that ``[data]`` chooses.

    Raises
    ------
    ConfigError
        If it cannot be read, or its parts do not fit each other.
    """
    catalogue = CATALOGUES["data"]
    asks = "task" in inspect.signature(catalogue.find(data.name)).parameters
    dataset = catalogue.make(data, **({"task": data.task} if asks else {}))
    with catalogue.in_code_of(data.name):
        try:
            if not isinstance(dataset, Dataset):
                code = sorted(version.digest for version in imported_sources(data.name).values())
                dataset = as_dataset(dataset, data.name, data.task, code)
            if data.task != "auto":
                dataset = with_task(dataset, data.task)
            check_dataset(dataset)
            dataset = with_task(plain(dataset))
        except ValueError as error:
            raise ConfigError(f"[data] {error}") from error
    if (data.flip or data.crop) and len(dataset.shape) != 3:
        raise ConfigError(
            f"data.flip and data.crop are for images, and the inputs of {dataset.name!r} have shape {dataset.shape}; "
            "remove them"
        )
    if data.crop and data.crop >= min(dataset.shape[1:]):
        raise ConfigError(
            f"data.crop = {data.crop} must be less than the {min(dataset.shape[1:])} pixels of an image's shorter side"
        )
    return dataset


def make_partition(
    config: Config, labels: np.ndarray, ids: Mapping[str, np.ndarray], rng: np.random.Generator
) -> Partition | Split:
    """Split examples with these labels, and ids by column, as ``[partition]`` says."""
    catalogue, settings = CATALOGUES["partitions"], config.partition
    wanted = inspect.signature(catalogue.find(settings.scheme)).parameters
    given = {"ids": ids, "validation": settings.validation, "test": settings.test}
    chosen = {name: value for name, value in given.items() if name in wanted}
    return catalogue.make(settings, labels, config.clients, rng, **chosen)


def feature_skew(features: FeaturesConfig) -> Callable[[Tensor, int, int, np.random.Generator], Tensor]:
    """Return a function that changes a client's normalised inputs as ``[features]`` says.

    Its arguments are the inputs, the client, the number of clients and a random stream. It raises a `ConfigError` if
    the skew does not fit the inputs, or gives something of another shape or type.
    """
    make = CATALOGUES["features"].maker(features)

    def skew(inputs: Tensor, client: int, clients: int, rng: np.random.Generator) -> Tensor:
        skewed = make(inputs, client, clients, rng)
        if not isinstance(skewed, Tensor) or skewed.shape != inputs.shape or skewed.dtype != inputs.dtype:
            found = f"{skewed.dtype} {tuple(skewed.shape)}" if isinstance(skewed, Tensor) else type(skewed).__name__
            raise ConfigError(
                f"features.skew = {features.skew!r} turns inputs {inputs.dtype} {tuple(inputs.shape)} into {found}; it "
                "must keep type and shape"
            )
        return skewed

    return skew


def make_strategy(config: Config, model: nn.Module, inputs: Tensor | None = None) -> Strategy:
    """Build the strategy that ``[strategy]`` chooses.

    Parameters
    ----------
    inputs
        Those that the server holds, normalised, shape [n, ...]; some strategies cannot do without.

    Raises
    ------
    ConfigError
        If it cannot be built, or shares something that is no layer of the model.
    """
    with CATALOGUES["strategies"].in_code_of(config.strategy.name):  # whose hooks are asked too
        return _checked_strategy(config, model, inputs)


def _checked_strategy(config: Config, model: nn.Module, inputs: Tensor | None) -> Strategy:
    strategy = CATALOGUES["strategies"].make(config.strategy, model, inputs=inputs, **_settings(config))
    assert isinstance(strategy, Strategy)
    where = f"strategy.name = {method_name(config)!r}"
    rounds = range(1, min(config.rounds, CHECKED_ROUNDS) + 1)
    try:
        strategy.check_rounds(config.rounds)  # which may keep their number for the other hooks
    except ValueError as error:
        raise ConfigError(f"{where} {error}") from error
    for server_round in rounds:
        try:
            group = strategy.shared(server_round)
        except KeyError as error:
            if strategy.memory:
                raise
            raise ConfigError(
                f"{where}: {error_line(error)} in shared({server_round}), which is asked before the run too; let "
                "prepare put into self.memory what it starts with"
            ) from error
        if not isinstance(group, LayerGroup) or not set(group) <= set(strategy.layers.names):
            raise ConfigError(
                f"{where}: shared({server_round}) returns {group!r}; it must be a group of the model's layers, as "
                f"self.layers.group('body') gives; layers are: {', '.join(strategy.layers.names)}"
            )
        plan = strategy.local_plan(server_round)
        if not isinstance(plan, LocalPlan):
            raise ConfigError(
                f"{where}: local_plan({server_round}) returns {a_type(plan)}; it must be a LocalPlan, such as "
                "LocalPlan((Phase('head'), Phase('body')))"
            )
        for phase in plan.phases:
            _check_phase(strategy, phase, f"{where}, round {server_round}")
    try:
        check_factors(strategy, rounds, own=config.model.initial == "own")
        check_stateless(strategy.client_rule)
    except ValueError as error:
        raise ConfigError(f"{where} {error}") from error
    check_steps(config, strategy.client_rule)
    return strategy


def make_local(config: Config) -> LocalSettings:
    """Return the settings of local training, with the optimiser that ``[optimizer]`` names.

    Raises
    ------
    ConfigError
        If ``[local]`` has settings of an optimiser besides.
    """
    settings, name = config.local.settings, config.optimizer.name
    if name in OPTIMIZERS:
        return settings
    if settings.optimizer != LocalSettings.optimizer:
        raise ConfigError(
            f"local.optimizer = {settings.optimizer!r} and optimizer.name = {name!r} are two optimisers; remove one"
        )
    try:
        return replace(settings, optimizer=CATALOGUES["optimizers"].maker(config.optimizer))
    except ValueError as error:
        raise ConfigError(f"optimizer.name = {name!r}: local.{error}") from error


def check_steps(config: Config, rule: type[ClientRule] | ClientRule) -> None:
    """Check that ``[local]`` takes steps for which a strategy's rule is defined.

    Raises
    ------
    ConfigError
        If a setting changes them.
    """
    if rule.plain_sgd:
        _check_local(config, NOT_PLAIN, "plain SGD")
    if rule.linear_steps:
        _check_local(config, NOT_LINEAR, "SGD with one step size")


def _check_local(config: Config, names: Sequence[str], wanted: str) -> None:
    """Check that settings of ``[local]`` have the values that they have in plain SGD."""
    plain = LocalSettings()
    odd = {f"local.{name}": getattr(config.local, name) for name in names}
    odd = {key: value for key, value in odd.items() if value != getattr(plain, key.partition(".")[2])}
    if config.optimizer.name not in OPTIMIZERS:
        odd["optimizer.name"] = config.optimizer.name
    if odd:
        found = ", ".join(f"{key} = {as_toml(value)}" for key, value in odd.items())
        raise ConfigError(
            f"strategy.name = {method_name(config)!r} is defined for {wanted}, and {found}; leave "
            f"{'it' if len(odd) == 1 else 'them'} out, or choose another strategy"
        )


def make_rule(config: Config, model: nn.Module, inputs: Tensor) -> ClientRule:
    """Build what the clients of the strategy that ``[strategy]`` chooses do beyond its plan, without the strategy.

    Parameters
    ----------
    inputs
        Inputs that the server holds, normalised, shape [n, ...].
    """
    options = CATALOGUES["strategies"].options(config.strategy)
    return strategy_class(config).make_rule(model, inputs, **options, **_settings(config))


def strategy_class(config: Config) -> type[Strategy]:
    """Return the class of the strategy that ``[strategy]`` chooses."""
    strategy = CATALOGUES["strategies"].find(config.strategy.name)
    assert isinstance(strategy, type)
    assert issubclass(strategy, Strategy)
    return strategy


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings that each strategy has besides its own options."""
    return {
        "participation": config.participation,
        "seed": config.seed,
        "buffers": config.strategy.buffers,
        "precision": config.strategy.precision,
        "upload_precision": config.strategy.upload_precision,
        "max_update_norm": config.strategy.max_update_norm,
        "evaluate_clients": config.evaluate_clients,
        "unseen": config.unseen,
        "send_initial": False,
    }


def _check_phase(strategy: Strategy, phase: Phase, where: str) -> None:
    try:
        scales(strategy.layers, phase.lr_scale)
    except ValueError as error:
        raise ConfigError(f"{where}: a phase's {error}") from error
    try:
        group = strategy.layers.group(phase.trainable)
    except ValueError as error:
        raise ConfigError(f"{where}: a phase trains {phase.trainable!r}: {error}") from error
    if not strategy.layers.keys(group, buffers=False):
        raise ConfigError(
            f"{where}: a phase trains {phase.trainable!r}, which holds no parameter; name a group that has some of: "
            f"{', '.join(strategy.layers.names)}"
        )
