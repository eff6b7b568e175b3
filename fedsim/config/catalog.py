"""All that can be chosen by name, in one place: strategies, partitions, feature skews, models and data sets.

This is the only module that reaches the packages `strategies` and `partitions`.
"""

import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_origin, get_type_hints

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from torch import Tensor, nn

import partitions
import strategies
from fedsim.config import Choice, Config, DataConfig, FeaturesConfig, explain_rule, shown, suggest
from fedsim.data import DATA, Dataset, check_dataset
from fedsim.data.skews import FEATURES
from fedsim.errors import ConfigError
from fedsim.models.architectures import MODELS
from fedsim.models.layers import LayerGroup
from fedsim.strategy import Phase, Strategy
from fedsim.strategy.flower_rule import NO_RULES, PREFIX, flower_rules
from partitions import PARTITIONS
from partitions import LabelCounts as LabelCounts
from partitions import Partition as Partition
from partitions import Split as Split
from partitions import hold_out as hold_out
from partitions import iid as iid
from strategies import STRATEGIES

Kind = Literal["strategies", "partitions", "features", "models", "data"]


def check_ours(package: ModuleType) -> None:
    """Check that a package lies beside this one: PyPI has others of the same name.

    Raises
    ------
    ImportError
        If it does not; the message names the file that was imported.
    """
    found = Path(package.__file__ or "").resolve().parent
    if found.parent != Path(__file__).resolve().parent.parent.parent:
        raise ImportError(
            f"the package {package.__name__!r} was imported from {found}, which is not fedsim's; "
            "uninstall the other distribution, or run from another folder"
        )


for _package in (strategies, partitions):
    check_ours(_package)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """One kind of thing that can be chosen: its entries by name, and where a config chooses one.

    Parameters
    ----------
    table
        Name of the config's table; its setting ``key`` holds the name.
    given
        Parameters that the run supplies and that are therefore no options.
    refused
        Names that somebody may look for here, with the reason why they are no entries.
    """

    entries: Mapping[str, Callable[..., Any]]
    table: str
    key: str
    given: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> Callable[..., Any]:
        """Return the entry ``name``, or the user's own as ``module:attribute``.

        Raises
        ------
        ConfigError
            If there is no such entry, or the module or its attribute cannot be imported.
        """
        if name in self.entries:
            return self.entries[name]
        where = f"{self.table}.{self.key} = {name!r}"
        if name in self.refused:
            raise ConfigError(f"{where} cannot be used: {self.refused[name]}")
        module, colon, attribute = name.partition(":")
        alike = [known for known in self.entries if known.startswith(f"{module}:")]
        if colon and not alike:
            try:
                entry = getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError, ValueError) as error:
                raise ConfigError(f"{where} cannot be imported from {Path.cwd()}: {error}") from error
            if not callable(entry):
                raise ConfigError(f"{where} must be a function or a class, and is a {type(entry).__name__}")
            return entry
        raise ConfigError(f"{where} is unknown{suggest(name, alike or self.entries)}")

    def options(self, choice: Choice, *, exclude_defaults: bool = False) -> dict[str, Any]:
        """Check the options of a choice and return them, with or without those that are left at their defaults.

        Raises
        ------
        ConfigError
            For an unknown option, a missing one, or a wrong type.
        """
        name = getattr(choice, self.key)
        schema = _schema(self.find(name), self.given)
        try:
            return schema.model_validate(choice.options).model_dump(exclude_defaults=exclude_defaults)
        except ValidationError as error:
            # A misspelt option is the cause of a missing one, so it comes first.
            problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        option = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            settings = [*type(choice).model_fields, *schema.model_fields]
            raise ConfigError(f"unknown key '{self.table}.{option}' for {name!r}{suggest(option, settings)}")
        if problem["type"] == "missing" and len(problem["loc"]) == 1:
            raise ConfigError(f"'{self.table}.{option}' is missing; {name!r} needs it")
        raise ConfigError(f"{self.table}.{option} = {shown(problem['input'])}: {explain_rule(problem)}")

    def signature(self, name: str) -> str:
        """Return an entry's options with their defaults, such as ``alpha, min_size = 10``."""
        options = []
        for option, info in _schema(self.find(name), self.given).model_fields.items():
            default = "unset" if info.default is None else shown(info.default)
            options.append(option if info.is_required() else f"{option} = {default}")
        return ", ".join(options)

    def label(self, choice: Choice) -> str:
        """Return a short name of a choice with its changed options, such as ``layer_set(shared=body)``."""
        fixed = choice.model_dump(exclude={self.key}, include=set(type(choice).model_fields), exclude_defaults=True)
        options = self.options(choice, exclude_defaults=True) | fixed
        text = ", ".join(f"{key}={value}" for key, value in options.items())
        return getattr(choice, self.key) + (f"({text})" if text else "")

    def make(self, choice: Choice, *given: Any, **settings: Any) -> Any:
        """Call the chosen entry with what the run gives, its options and further settings.

        Raises
        ------
        ConfigError
            If the entry rejects a value, or does not find a file.
        """
        entry = self.find(getattr(choice, self.key))
        try:
            return entry(*given, **self.options(choice), **settings)
        except (ValueError, OSError) as error:
            raise ConfigError(f"[{self.table}] {error}") from error
        except TypeError as error:
            if len(traceback.extract_tb(error.__traceback__)) > 1:
                raise  # from inside the entry, not from the call
            names = ", ".join(self.given) or "its options"
            raise ConfigError(f"[{self.table}] {entry.__name__} cannot be called with {names}: {error}") from error


@cache  # a client's data ask for it each time
def _schema(entry: Callable[..., Any], given: tuple[str, ...]) -> type[BaseModel]:
    """Return a record of an entry's options: its parameters, less those that the run gives."""
    constructor = entry.__init__ if isinstance(entry, type) else entry  # type: ignore[misc]
    hints = get_type_hints(constructor, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(entry).parameters.items():
        if name not in given and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            hint = hints.get(name, Any)
            # TOML has lists only, so a tuple is the one type that is not taken strictly.
            fields[name] = (hint, Field(default, strict=False) if get_origin(hint) is tuple else Field(default))
    return create_model("Options", __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False), **fields)


CATALOGUES: dict[Kind, Catalogue] = {
    "strategies": Catalogue(
        STRATEGIES | flower_rules(),
        "strategy",
        "name",
        (
            "model",
            "participation",
            "seed",
            "buffers",
            "min_available_nodes",
            "send_initial",
            "precision",
            "evaluate_clients",
            "unseen",
            "inputs",
        ),
        {PREFIX + name: reason for name, reason in NO_RULES.items()},
    ),
    "partitions": Catalogue(
        PARTITIONS, "partition", "scheme", ("labels", "clients", "rng", "ids", "validation", "test")
    ),
    "features": Catalogue(FEATURES, "features", "skew", ("inputs", "client", "clients", "rng")),
    "models": Catalogue(MODELS, "model", "name", ("shape", "classes")),
    "data": Catalogue(DATA, "data", "name", ()),
}


def resolve(config: Config) -> Config:
    """Return the config with every option of every choice checked and written out.

    Raises
    ------
    ConfigError
        If a name or an option is unknown, or has a wrong type.
    """
    choices = {catalogue: getattr(config, catalogue.table) for catalogue in CATALOGUES.values()}
    return config.model_copy(
        update={
            catalogue.table: choice.model_copy(update=catalogue.options(choice))
            for catalogue, choice in choices.items()
        }
    )


def describe(entry: Callable[..., Any]) -> tuple[str, str]:
    """Return the first sentence of an entry's docstring and its references; what has none is fedsim's own."""
    docstring = (inspect.getdoc(entry) or "").replace("`", "")
    _, _, references = docstring.partition("References\n----------\n")
    return docstring.partition("\n")[0], references.partition("\n\n")[0].replace("\n", " ") or "fedsim"


def make_dataset(data: DataConfig) -> Dataset:
    """Read the data set that ``[data]`` chooses.

    Raises
    ------
    ConfigError
        If it cannot be read, or its parts do not fit each other.
    """
    dataset = CATALOGUES["data"].make(data)
    if not isinstance(dataset, Dataset):
        raise ConfigError(
            f"data.name = {data.name!r} gives a {type(dataset).__name__}; it must be a fedsim.data.Dataset"
        )
    try:
        check_dataset(dataset)
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


def skew_features(
    features: FeaturesConfig, inputs: Tensor, client: int, clients: int, rng: np.random.Generator
) -> Tensor:
    """Change a client's normalised inputs as ``[features]`` says.

    Raises
    ------
    ConfigError
        If the skew does not fit the inputs, or gives something of another shape or type.
    """
    skewed = CATALOGUES["features"].make(features, inputs, client, clients, rng)
    if not isinstance(skewed, Tensor) or skewed.shape != inputs.shape or skewed.dtype != inputs.dtype:
        found = f"{skewed.dtype} {tuple(skewed.shape)}" if isinstance(skewed, Tensor) else type(skewed).__name__
        raise ConfigError(
            f"features.skew = {features.skew!r} turns inputs {inputs.dtype} {tuple(inputs.shape)} into {found}; it "
            "must keep type and shape"
        )
    return skewed


def make_strategy(config: Config, model: nn.Module, inputs: Tensor | None = None) -> Strategy:
    """Build the strategy that ``[strategy]`` chooses.

    Parameters
    ----------
    inputs
        Those that the server holds, normalised, shape [n, ...]; some strategies cannot do without.

    Raises
    ------
    ConfigError
        If it cannot be built, is not a strategy, or shares something that is no layer of the model.
    """
    strategy = CATALOGUES["strategies"].make(
        config.strategy,
        model,
        participation=config.participation,
        seed=config.seed,
        buffers=config.strategy.buffers,
        precision=config.strategy.precision,
        evaluate_clients=config.evaluate_clients,
        unseen=config.unseen,
        inputs=inputs,
        send_initial=False,
    )
    name = config.strategy.name
    if not isinstance(strategy, Strategy):
        raise ConfigError(
            f"strategy.name = {name!r} gives a {type(strategy).__name__}; it must be a fedsim.strategy.Strategy"
        )
    for server_round in range(1, config.rounds + 1):
        group = strategy.shared(server_round)
        if not isinstance(group, LayerGroup) or not set(group) <= set(strategy.layers.names):
            raise ConfigError(
                f"strategy.name = {name!r}: shared({server_round}) returns {group!r}; it must be a group of the "
                f"model's layers, as self.layers.group('body') gives; layers are: {', '.join(strategy.layers.names)}"
            )
        for phase in strategy.local_plan(server_round).phases:
            _check_phase(strategy, phase, f"strategy.name = {name!r}, round {server_round}")
    if strategy.client_rule().plain_sgd and (config.local.momentum or config.local.weight_decay):
        raise ConfigError(
            f"strategy.name = {name!r} is defined for plain SGD, and local.momentum = {config.local.momentum}, "
            f"local.weight_decay = {config.local.weight_decay}; set both to 0"
        )
    return strategy


def _check_phase(strategy: Strategy, phase: Phase, where: str) -> None:
    try:
        group = strategy.layers.group(phase.trainable)
    except ValueError as error:
        raise ConfigError(f"{where}: a phase trains {phase.trainable!r}: {error}") from error
    if not strategy.layers.keys(group, buffers=False):
        raise ConfigError(
            f"{where}: a phase trains {phase.trainable!r}, which holds no parameter; name a group that has some of: "
            f"{', '.join(strategy.layers.names)}"
        )
