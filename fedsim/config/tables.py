"""An experiment's settings: typed, frozen records read from TOML.

The tables that choose something by name (``[data]``, ``[partition]``, ``[model]``, ``[strategy]``) also hold the
options of what they choose; `fedsim.config.catalog.resolve` checks those and writes out their defaults.
"""

import copy
import difflib
import hashlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from fedsim.config.expectation import Expectation, MatchedBy, Measure
from fedsim.errors import ConfigError
from fedsim.training import SGD


class Table(BaseModel):
    """A table of fixed settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Choice(BaseModel):
    """A table that chooses an entry of a catalogue and holds its options."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    @property
    def options(self) -> dict[str, Any]:
        """The settings that belong to the chosen entry."""
        return dict(self.model_extra or {})


class DataConfig(Choice):
    """``[data]``: the data set, how much of it is used, and how training images are augmented.

    ``flip`` mirrors half of them, ``crop`` pads them by so many pixels and cuts a window of their own size.
    """

    name: str = "digits"
    train_examples: Annotated[int, Field(ge=1)] | None = None
    test_examples: Annotated[int, Field(ge=1)] | None = None
    flip: bool = False
    crop: Annotated[int, Field(ge=0)] = 0


class PartitionConfig(Choice):
    """``[partition]``: how the training set is shared out, and the share of each client's examples held out.

    With ``test_skew = "uniform"`` clients are tested on like shares of all examples, set aside before the others are
    shared out.
    """

    scheme: str = "dirichlet"
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test_skew: Literal["alike", "uniform"] = "alike"

    @model_validator(mode="after")
    def _leave_some_to_train(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation = {self.validation} and test = {self.test} must add up to less than 1")
        return self


class FeaturesConfig(Choice):
    """``[features]``: what makes a client's inputs unlike the others'."""

    skew: str = "none"


class ModelConfig(Choice):
    """``[model]``: the architecture; ``initial = "own"`` lets each client start from weights of its own."""

    name: str = "mlp"
    initial: Literal["shared", "own"] = "shared"


class LocalConfig(Table):
    """``[local]``: the clients' training; see `fedsim.training.SGD`."""

    epochs: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 32
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    nesterov: bool = False
    optimizer_state: Literal["reset", "keep"] = "reset"

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs a momentum greater than 0")
        return self

    def sgd(self) -> SGD:
        """Return the settings as `training` takes them."""
        return SGD(**self.model_dump())


class StrategyConfig(Choice):
    """``[strategy]``: what is averaged, and in which ``precision`` the sum is kept."""

    name: str = "full"
    buffers: Literal["shared", "personal", "recompute"] = "shared"
    precision: Literal["float64", "float32"] = "float64"


class BarriersConfig(Table):
    """``[barriers]``: the layer-wise barriers between the models as uploaded, and what is measured beside them.

    ``every`` is in rounds, 0 for never, ``auto`` as often as takes a tenth of the training's work at most; only
    barriers, times the ways of ``matching``, are counted, not the matching itself or other ``measures``. ``groups`` are
    kinds of groups (`fedsim.analysis.mixing.groups.named_groups`) or layer expressions; ``pairs`` is the number of
    pairs of clients beside the average, mixed at each of ``ts``. Models are measured ``on`` the server's test data, all
    clients' ``train`` data, or, barriers only, each client's model on its own test data (``clients``): on ``examples``
    of them at most, the same in each round, or on fewer with a ``tolerance`` in nats. ``bands`` is a level of
    confidence, 0 for none. With ``matching`` by ``weights`` or by ``activations`` the models are measured after their
    units have been put into the same places, too if it also holds ``none``. Features between a pair are compared at
    those ``ts`` that are neither 0 nor 1, or halfway if there are none.
    """

    every: int | Literal["auto"] = "auto"
    groups: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("layers", "full")
    against: Literal["average"] = "average"
    pairs: Annotated[int, Field(ge=0)] = 0
    ts: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(strict=False, min_length=1)] = (0.0, 0.5, 1.0)
    on: Annotated[tuple[Literal["server", "train", "clients"], ...], Field(strict=False, min_length=1)] = ("server",)
    examples: Annotated[int, Field(ge=1)] = 500
    normalisation: Literal["interpolate", "base", "recompute"] = "interpolate"
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    bands: Annotated[float, Field(ge=0, lt=1)] = 0.95
    measures: Annotated[tuple[Measure, ...], Field(strict=False)] = ("distances",)
    matching: Annotated[tuple[MatchedBy, ...], Field(strict=False, min_length=1)] = ("none",)

    @field_validator("every", mode="before")
    @classmethod
    def _rounds_or_auto(cls, value: object) -> object:
        if value != "auto" and not (type(value) is int and value >= 0):
            raise ValueError('must be "auto" or a whole number of at least 0')
        return value

    @field_validator("matching")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("must hold each of none, weights and activations once at most")
        return value

    @field_validator("measures")
    @classmethod
    def _measurable(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("must hold each once at most")
        if "cka" in value and info.data.get("examples", 4) < 4:
            raise ValueError(f"examples = {info.data['examples']} must be at least 4 where measures hold cka")
        on_data = [name for name in value if name not in ("distances", "spectra")]
        if on_data and set(info.data.get("on", ())) == {"clients"}:
            names = ", ".join(on_data)
            raise ValueError(f"on 'clients' only barriers are measured, not {names}; add 'server' to barriers.on")
        return value


PERTURBATION = re.compile(r"(fgsm|noise):((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)")
EvaluatedModel = Literal["personalised", "global", "trained", "fine-tuned"]


class EvaluationConfig(Table):
    """``[evaluation]``: which models of each client are measured, and ``on`` what beside its own data.

    Beside the client's ``personalised`` model, with what it next takes from the server, and the ``global`` one: its
    model right after local training (``trained``), and the personalised one after ``fine_tune_epochs`` more on its
    training data (``fine-tuned``), of which nothing stays. ``fine_tune_layers`` is a group, or, with ``auto``, the one
    that the strategy names. Clients fine-tune in each ``fine_tune_every``-th round, 0 for none, and in the last one.
    With ``on = ["test", "server"]`` every client's models are measured on the server's test data too. The server's
    models are also measured on ``perturbed`` test data, such as ``["fgsm:0.1", "noise:0.2"]``: inputs moved by the size
    along the sign of the loss's gradient, or by Gaussian noise of that standard deviation. Sizes are in units of the
    normalised inputs.
    """

    models: Annotated[tuple[EvaluatedModel, ...], Field(strict=False)] = ("personalised", "global")
    on: Annotated[tuple[Literal["test", "server"], ...], Field(strict=False)] = ("test",)
    fine_tune_epochs: Annotated[int, Field(ge=1)] = 5
    fine_tune_layers: str = "auto"
    fine_tune_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    fine_tune_every: Annotated[int, Field(ge=0)] = 0
    perturbed: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @field_validator("models")
    @classmethod
    def _begin_with_those_of_every_report(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not {"personalised", "global"} <= set(value):
            raise ValueError('must hold "personalised" and "global", which every report shows')
        return value

    @field_validator("on")
    @classmethod
    def _hold_the_own_test_data(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "test" not in value:
            raise ValueError('must hold "test", the client\'s own test data')
        return value

    @field_validator("perturbed")
    @classmethod
    def _be_kinds_and_sizes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        found = []
        for text in value:
            match = PERTURBATION.fullmatch(text)
            if not match or not 0 < float(match[2]) < math.inf:
                raise ValueError(
                    'must hold kinds and sizes greater than 0, such as "fgsm:0.1" and "noise:0.2"; '
                    f"{shown(text)} is neither"
                )
            found.append((match[1], float(match[2])))
        if len(set(found)) < len(found):
            raise ValueError("must hold each perturbation once")
        return value

    def sizes(self, kind: Literal["fgsm", "noise"]) -> dict[float, str]:
        """Return the sizes of the perturbations of a kind, each with the text that names it."""
        parts = [text.partition(":") for text in self.perturbed]
        return {float(size): f"{found}:{size}" for found, _, size in parts if found == kind}


class StopConfig(Table):
    """``[stop]``: end the run once the clients' personalised models no longer improve on their validation data.

    That is when ``patience`` evaluations in a row, 0 for never, have not been better than the best one before, by the
    mean over the clients.
    """

    patience: Annotated[int, Field(ge=0)] = 0
    metric: Literal["accuracy", "loss"] = "accuracy"


class EngineConfig(Table):
    """``[engine]``: where the clients run. It changes the time, never the numbers, so it does not name a run.

    ``workers`` is the number of threads (local) or actors (ray), 0 for one per processor; ``gpus_per_worker`` may be
    a fraction. ``cohort`` clients train at once as one vectorised computation, whose numbers agree with those of one
    after the other to float tolerance; ``auto`` is whatever is faster on the device. A client that takes longer than
    ``deadline`` seconds is left out of its round. The states of clients beyond ``cache_bytes`` in memory are on disk.
    """

    name: Literal["local", "ray"] = "local"
    workers: Annotated[int, Field(ge=0)] = 0
    cohort: int | Literal["auto"] = "auto"
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    cache_bytes: Annotated[int, Field(ge=0)] = 2**30
    address: str | None = None
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("cohort", mode="before")
    @classmethod
    def _number_or_auto(cls, value: object) -> object:
        if value != "auto" and not (type(value) is int and value >= 1):
            raise ValueError('must be "auto" or a whole number of at least 1')
        return value


class TuneConfig(BaseModel):
    """``[tune]``: lists of values of settings, of which each combination of the sweep gets the best by itself.

    Before the runs, every combination of these values is played with ``seed``, the sweep's first if not given, and for
    ``rounds``, those of the runs if not given. What is best on the clients' validation data is played with all seeds.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(init=False)

    rounds: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The values by dotted setting; empty if nothing is tuned."""
        return dict(self.__pydantic_extra__)

    @property
    def is_wanted(self) -> bool:
        """Whether the table says anything."""
        return bool(self.model_fields_set)

    def combinations(self) -> list[dict[str, Any]]:
        """Return each combination of values by setting, in the order of the lists; the last setting changes first."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


class Config(Table):
    """One run, or, with ``[sweep]``, a family of runs.

    ``unseen`` is the share of the clients that never take part in training, at least one of them if it is not 0;
    ``participation`` is a share of the others. ``evaluate_clients`` is how many clients are evaluated, the same in each
    round, and at most as many unseen ones; all without it. ``[[expect]]`` says what the runs should show, for ``fedsim
    check``.
    """

    rounds: Annotated[int, Field(ge=1)]
    clients: Annotated[int, Field(ge=1)]
    unseen: Annotated[float, Field(ge=0, lt=1)] = 0.0
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")] = "auto"
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    evaluate_clients: Annotated[int, Field(ge=1)] | None = None
    checkpoint_every: Annotated[int, Field(ge=1)] = 1
    data: DataConfig = DataConfig()
    partition: PartitionConfig
    features: FeaturesConfig = FeaturesConfig()
    model: ModelConfig = ModelConfig()
    local: LocalConfig = LocalConfig()
    strategy: StrategyConfig = StrategyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    stop: StopConfig = StopConfig()
    barriers: BarriersConfig = BarriersConfig()
    engine: EngineConfig = EngineConfig()
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    tune: TuneConfig = TuneConfig()
    expect: Annotated[tuple[Expectation, ...], Field(strict=False)] = ()

    @field_validator("unseen")
    @classmethod
    def _leave_a_client_to_train(cls, value: float, info: ValidationInfo) -> float:
        clients = info.data.get("clients")  # None if that is wrong itself
        if value and clients and max(1, round(value * clients)) >= clients:
            raise ValueError(f"must leave a client to train, of clients = {clients}; use a smaller share")
        return value

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
        if nested := [key for key in self.sweep if key.split(".")[0] in ("sweep", "tune", "engine")]:
            raise ConfigError(f"{source}: [sweep] {nested[0]!r} cannot be swept; it does not change a run's numbers")
        # A whole table goes before its own settings, so that neither undoes the other.
        keys = sorted(self.sweep, key=lambda key: key.count("."))
        base = self.model_dump(exclude={"sweep", "tune"}, exclude_unset=True)
        configs = []
        for values in itertools.product(*(self.sweep[key] for key in self.sweep)):
            chosen = dict(zip(self.sweep, values, strict=True))
            changes = {tuple(key.split(".")): chosen[key] for key in keys}
            where = f"{source} [sweep]" if changes else source
            configs.append(self.parse(with_settings(base, changes), where))
        return configs

    def to_toml(self) -> str:
        """Write all settings as TOML; those without a value are left out."""
        settings = _without_none(self.model_dump(mode="json", exclude={"sweep", "tune", "expect"}))
        expected = [each.model_dump(mode="json", exclude_unset=True) for each in self.expect]
        return tomli_w.dumps(settings | ({"expect": expected} if expected else {}))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    ConfigError
        If it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; give the path of an experiment's TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def parse_assignment(text: str) -> tuple[tuple[str, ...], Any]:
    """Read ``key.of.setting=value`` as on the command line; key and value are TOML.

    Returns
    -------
    path, value
        The tables and the key, and what it is set to.

    Raises
    ------
    ConfigError
        If there is no key, or the value is not TOML.
    """
    key, equals, value = text.partition("=")
    path = _read_key(key)
    if not equals or not path:
        raise ConfigError(f"--set {text!r} must be KEY=VALUE, for instance --set local.lr=0.01")
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        raise ConfigError(
            f"--set {text!r}: {value!r} is not a TOML value; a string needs quotes of its own, "
            f"for instance --set '{key.strip()}=\"{value.strip()}\"'"
        ) from None


def _read_key(key: str) -> tuple[str, ...]:
    """Return the parts of a TOML key, which may be dotted and quoted; none if it is not a key."""
    try:
        table: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    path = []
    while isinstance(table, dict):
        [(name, table)] = table.items()
        path.append(name)
    return tuple(path)


def with_settings(settings: Mapping[str, Any], changes: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return nested settings with those at the given paths set anew; neither argument is changed.

    Raises
    ------
    ConfigError
        If a path goes through something that is not a table.
    """
    result = copy.deepcopy(dict(settings))
    for path, value in changes.items():
        *tables, last = path
        table = result
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{'.'.join(path)!r} cannot be set: {name!r} is not a table")
        table[last] = value
    return result


def short_hash(settings: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits that depend on the settings and not on their order."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'? known are: a, b`` for an unknown name."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"; {guess}known are: {', '.join(names)}"


def _explain(error: ValidationError) -> str:
    """Say in one line what the first problem is and how to mend it."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        table: type[BaseModel] = Expectation if path[0] == "expect" else Config
        for name in path[:-1] if table is Config else ():
            table = table.model_fields[name].annotation  # type: ignore[assignment]
        return f"unknown key {key!r}{suggest(path[-1], table.model_fields)}"
    if problem["type"] == "missing":
        return f"{key!r} is missing; every experiment must set it"
    if path[0] in ("sweep", "tune") and problem["type"] == "list_type":
        example = f'"{path[-1]}.lr"' if isinstance(problem["input"], dict) else shown(path[-1])
        rule = f"must be a list of values; a dotted key needs quotes, as in {example} = [...]"
        return f"{key} = {shown(problem['input'])}: {rule}"
    return f"{key} = {shown(problem['input'])}: {explain_rule(problem)}"


def explain_rule(problem: Mapping[str, Any]) -> str:
    """Return the rule that a value broke, from one of pydantic's errors."""
    rules = {
        "model_type": 'must be a table, as in [strategy] with name = "full"',
        "string_pattern_mismatch": "must be 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'",
        "too_short": "must have at least one value",
        "tuple_type": "must be a list, such as [1, 2]",
        "missing": "must have more values",
    }
    return rules.get(problem["type"]) or problem["msg"].removeprefix("Value error, ").removeprefix("Input ")


def shown(value: Any) -> str:
    """Write a value as TOML would, for a message."""
    return json.dumps(value, default=str)


def _without_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if value is not None
    }
