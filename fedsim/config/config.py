"""An experiment's settings as one record, checked, and the runs that its sweep asks for."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from fedsim.config.adapter import AdapterConfig
from fedsim.config.asymmetry import AsymmetryConfig
from fedsim.config.barriers import BarriersConfig
from fedsim.config.changes import as_changes, combinations, with_changes
from fedsim.config.evaluation import EvaluationConfig, MetricConfig
from fedsim.config.expectation import Expectation
from fedsim.config.faults import FaultsConfig
from fedsim.config.local import LocalConfig, OptimizerConfig
from fedsim.config.loss import LossConfig
from fedsim.config.names import known_elsewhere
from fedsim.config.records import Choice, Table
from fedsim.config.tables import (
    CheckpointsConfig,
    DataConfig,
    EngineConfig,
    FeaturesConfig,
    ModelConfig,
    PartitionConfig,
    StopConfig,
    StrategyConfig,
    TuneConfig,
)
from fedsim.config.toml import path_of, value_at, write_toml
from fedsim.config.track import TrackConfig
from fedsim.config.trusted import check_spelling
from fedsim.errors import ConfigError
from fedsim.options import as_toml, explain_rule

# Participants of all rounds are drawn before the first one, and each combination is checked before the first run.
MOST_ROUNDS, MOST_RUNS = 10**6, 10**4
# Settings that change no number of a run.
WITHOUT_EFFECT = ("engine", "checkpoints", "checkpoint_every", "expect", "track", "callbacks")


class Config(Table):
    """One run, or, with ``[sweep]``, a family of runs.

    Parameters
    ----------
    rounds
        Number of communication rounds.
    clients
        Number of clients, each of which holds one part of the data.
    unseen
        Share of the clients that never take part in training, at least one of them if it is not 0.
    participation
        Share of the other clients that train in a round.
    seed
        Seed of all random streams: data, weights, participants, mini-batches.
    device
        Device of the computations: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
    evaluate_every
        Rounds from one evaluation to the next.
    evaluate_clients
        Number of clients that are evaluated, the same in each round, and at most as many unseen ones (default: all).
    checkpoint_every
        Rounds from one checkpoint to the next.
    sweep
        Lists of values by dotted setting; one run per combination.
    expect
        What the runs should show, for ``fedsim check``.
    callbacks
        Custom functions or subclasses of `fedsim.Callback` to call during a run.
    """

    rounds: Annotated[int, Field(ge=1, le=MOST_ROUNDS)]
    clients: Annotated[int, Field(ge=1)]
    unseen: Annotated[float, Field(ge=0, lt=1)] = 0.0
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    evaluate_clients: Annotated[int, Field(ge=1)] | None = None
    checkpoint_every: Annotated[int, Field(ge=1)] = 1
    data: DataConfig = DataConfig()
    partition: PartitionConfig
    features: FeaturesConfig = FeaturesConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    local: LocalConfig = LocalConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    strategy: StrategyConfig = StrategyConfig()
    faults: FaultsConfig = FaultsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    metric: MetricConfig = MetricConfig()
    stop: StopConfig = StopConfig()
    barriers: BarriersConfig = BarriersConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    engine: EngineConfig = EngineConfig()
    track: TrackConfig = TrackConfig()
    callbacks: Annotated[tuple[str, ...], Field(strict=False)] = ()
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field({})
    tune: TuneConfig = TuneConfig()
    expect: Annotated[tuple[Expectation, ...], Field(strict=False)] = ()

    @field_validator("device")
    @classmethod
    def _be_a_known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", value):
            raise ValueError("must be 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'")
        return value

    @field_validator("unseen")
    @classmethod
    def _leave_a_client_to_train(cls, value: float, info: ValidationInfo) -> float:
        clients = info.data.get("clients")  # None if that is wrong itself
        if value and clients and max(1, round(value * clients)) >= clients:
            raise ValueError(f"leaves none of clients = {clients} to train; use a smaller share")
        return value

    @field_validator("faults")
    @classmethod
    def _hit_clients_of_the_run(cls, value: FaultsConfig, info: ValidationInfo) -> FaultsConfig:
        clients = info.data.get("clients")  # None if that is wrong itself
        if value.clients and clients and (last := max(value.clients)) >= clients:
            raise ValueError(f"clients = {list(value.clients)} names {last}; the clients are 0 to {clients - 1}")
        return value

    @field_validator("callbacks")
    @classmethod
    def _be_names_of_code(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            check_spelling(name, as_toml(name))
        return value

    @property
    def keeps_best(self) -> bool:
        """Whether the models of the best round so far are kept, next to those of the last checkpoint."""
        keep = self.checkpoints.keep
        return keep in ("best", "all") or (keep == "auto" and self.checkpoint_every == 1)

    @classmethod
    def parse(cls, settings: Mapping[str, Any], source: str) -> Self:
        """Check settings as read from TOML.

        Raises
        ------
        ConfigError
            For the first unknown key, wrong type or value out of range; the message begins with ``source``.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise ConfigError(f"{source}: {_explain(error)}") from None

    def runs(self, source: str) -> list[Self]:
        """Return one config per combination of the sweep's settings, each without a sweep and with nothing to tune.

        Raises
        ------
        ConfigError
            If a combination is not a valid config.
        """
        if nested := [key for key in self.sweep if path_of(key)[0] in ("sweep", "tune", *WITHOUT_EFFECT)]:
            raise ConfigError(f"{source}: [sweep] {nested[0]!r} cannot be swept; it does not change a run's numbers")
        for outer, inner in itertools.permutations(self.sweep, 2):
            rest = path_of(inner)[len(path_of(outer)) :]
            if inner.startswith(f"{outer}.") and any(value_at(each, rest) is not None for each in self.sweep[outer]):
                raise ConfigError(
                    f"{source}: [sweep] {inner!r} would replace what the tables of {outer!r} have; remove one of them"
                )
        check_count(self.sweep, f"{source}: [sweep]")
        base = self.model_dump(exclude={"sweep", "tune"}, exclude_unset=True)
        configs = []
        for values in combinations(self.sweep):
            changes = as_changes(values)
            where = f"{source} [sweep]" if changes else source
            configs.append(self.parse(with_changes(base, changes, type(self)), where))
        return configs

    def to_toml(self) -> str:
        """Write all settings as TOML; those without a value are left out."""
        # Who asks for no faults or no metric finds no table of them.
        unwanted = {
            name for name in ("faults", "metric") if getattr(self, name) == type(self).model_fields[name].default
        }
        # Where results are sent is no business of who is given the run's folder.
        unwanted |= {"track", "callbacks"}
        settings = self.model_dump(mode="json", exclude={"sweep", "tune", "expect", *unwanted})
        if self.model.adapter == AdapterConfig():  # nor who asks for no adapter
            del settings["model"]["adapter"]
        if self.model.asymmetry == AsymmetryConfig():
            del settings["model"]["asymmetry"]
        expected = [each.model_dump(mode="json", exclude_unset=True) for each in self.expect]
        return write_toml(settings | ({"expect": expected} if expected else {}))


def check_count(values: Mapping[str, Sequence[Any]], where: str) -> None:
    """Check that lists of values do not have more combinations than anybody would run.

    Raises
    ------
    ConfigError
        If they do.
    """
    if (count := math.prod(map(len, values.values()))) > MOST_RUNS:
        raise ConfigError(f"{where} has {count:,} combinations, and at most {MOST_RUNS:,} can be run; remove values")


def _explain(error: ValidationError) -> str:
    """Say in one line what the first problem is and how to fix it."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {key!r}{known_elsewhere(key, _in_tables(), _settings(path[:-1]))}"
    if problem["type"] == "missing":
        return f"{key!r} is missing; every experiment must set it"
    rule = explain_rule(problem)
    table: Any = Config.model_fields[key].annotation if problem["type"] == "model_type" and len(path) == 1 else None
    if table and issubclass(table, Choice) and isinstance(problem["input"], str):
        rule = f"must be a table, as in [{key}] with {table.KEY} = {as_toml(problem['input'])}"
    if path[0] in ("sweep", "tune") and problem["type"] == "list_type":
        rule = f"must be a list of values, such as {as_toml([problem['input']])}"
        if isinstance(problem["input"], dict):
            example = f"{path[-1]}.{next(iter(problem['input']), 'lr')}"
            rule = f'must be a list of values; a dotted key needs quotes, as in "{example}" = [...]'
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):
        # What several settings break together names them itself, and the whole table would hide it.
        return f"{key}.{rule}" if re.match(r"\w+ = ", rule) else f"{key}: {rule}"
    return f"{key} = {as_toml(problem['input'])}: {rule}"


def _in_tables() -> list[str]:
    """Return the dotted names of the settings in the experiment's tables."""
    tables = {name: field.annotation for name, field in Config.model_fields.items()}
    return [f"{name}.{each}" for name, table in tables.items() for each in getattr(table, "model_fields", ())]


def _settings(path: list[str]) -> list[str]:
    """Return the names of the settings in the table at a path."""
    if path and path[0] == "expect":
        return list(Expectation.model_fields)
    table: Any = Config
    for name in path:
        table = table.model_fields[name].annotation
    return list(table.model_fields)
