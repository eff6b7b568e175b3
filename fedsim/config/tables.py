"""The tables of an experiment's settings: typed, frozen records.

The tables that choose something by name (``[data]``, ``[partition]``, ``[model]``, ``[strategy]``) also hold the
options of what they choose; `fedsim.config.choices.resolve` checks those and writes out their defaults.
"""

import itertools
import math
import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from fedsim.analysis.mixing.names import PAIR_TS
from fedsim.analysis.suite import MEASURES, MeasureName
from fedsim.config.expectation import MatchedBy
from fedsim.options import as_toml, one_of
from fedsim.training.metrics import MAIN, METRICS, SELECTING

ADDRESS = re.compile(r"(ray://)?(\[[0-9A-Fa-f:.]+\]|[\w.-]+):(?P<port>[0-9]{1,5})", re.ASCII)
SelectingMetric = Annotated[str, AfterValidator(one_of(SELECTING))]


class Table(BaseModel):
    """A table of fixed settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Choice(BaseModel):
    """A table that chooses an entry of a catalogue and holds its options; ``FILES`` are settings that name a file."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)
    FILES: ClassVar[tuple[str, ...]] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The settings that belong to the chosen entry."""
        return dict(self.model_extra or {})


class DataConfig(Choice):
    """``[data]``: the data set, how much of it is used, what is learnt, and how training images are augmented.

    ``task`` follows from the targets if it is not given: whole numbers are classes, or the next token; floats of 0 and
    1 are a yes or no, or several labels; other floats are numbers to predict. ``flip`` mirrors half of the images;
    ``crop`` pads them by that many pixels and cuts out a window of the original size.
    """

    name: str = "digits"
    train_examples: Annotated[int, Field(ge=1)] | None = None
    test_examples: Annotated[int, Field(ge=1)] | None = None
    flip: bool = False
    crop: Annotated[int, Field(ge=0)] = 0
    task: Literal["auto", "classification", "next-token", "binary", "multi-label", "regression"] = "auto"


class PartitionConfig(Choice):
    """``[partition]``: how the training set is split across clients, and how much of each client's share is held out.

    With ``test_skew = "uniform"`` clients are tested on equal shares of all examples, set aside before the split. For
    schemes by class, numbers to predict are put into ``bins`` of about as many examples each, which stand for classes.
    """

    scheme: str = "dirichlet"
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test_skew: Literal["alike", "uniform"] = "alike"
    bins: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _leave_some_to_train(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation = {self.validation} and test = {self.test} must add up to less than 1")
        return self


class FeaturesConfig(Choice):
    """``[features]``: how the inputs of each client are changed, so that they differ from the others'."""

    skew: str = "none"


class ModelConfig(Choice):
    """``[model]``: the architecture; with ``initial = "own"`` each client starts from different weights.

    ``head`` and ``freeze`` are layer expressions. The first names the layers that give the logits, if what the model
    does leaves this open; the second those that keep their initial weights, as parameters without a gradient do.
    The global model starts from the ``weights`` in a file, as torch or safetensors write it, except for the layers
    ``weights_skip``, which start from the seed.
    """

    FILES: ClassVar[tuple[str, ...]] = ("weights",)

    name: str = "mlp"
    initial: Literal["shared", "own"] = "shared"
    head: str = ""
    freeze: str = ""
    weights: str = ""
    weights_skip: str = ""

    @model_validator(mode="after")
    def _use_weights(self) -> Self:
        if self.weights_skip and not self.weights:
            raise ValueError(f"weights_skip = {self.weights_skip!r} needs weights, the file of which it skips layers")
        return self


class StrategyConfig(Choice):
    """``[strategy]``: what is averaged, and in which ``precision`` the sum is kept.

    An update whose L2 distance from what its client received is larger than ``max_update_norm`` is left out.
    """

    name: str = "full"
    buffers: Literal["shared", "personal", "recompute"] = "shared"
    precision: Literal["float64", "float32"] = "float64"
    max_update_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class BarriersConfig(Table):
    """``[barriers]``: layer-wise barriers between the uploaded models, and further measures of these models.

    ``every`` is in rounds: 0 for never, ``auto`` for as often as costs at most a tenth of the training; only barriers,
    once per kind of ``matching``, are counted, not the matching itself or other ``measures``. ``groups`` are kinds of
    groups (`fedsim.analysis.mixing.groups.named_groups`) or layer expressions; ``pairs`` is the number of pairs of
    clients to measure in addition to the average, mixed at each of ``ts``. Models are measured ``on`` the server's test
    data, all clients' ``train`` data, or, barriers only, each client's model on its own test data (``clients``): on at
    most ``examples`` of them, the same in each round, or on fewer with a ``tolerance`` in nats. ``bands`` is a
    confidence level, 0 for none. With ``matching`` by ``weights`` or ``activations`` models are measured after their
    units have been aligned, and before as well if it also holds ``none``. Features between a pair are compared at those
    ``ts`` that are neither 0 nor 1, or halfway if there are none.
    """

    every: int | Literal["auto"] = "auto"
    groups: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("layers", "full")
    against: Literal["average"] = "average"
    pairs: Annotated[int, Field(ge=0)] = 0
    ts: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(strict=False, min_length=1)] = PAIR_TS
    on: Annotated[tuple[Literal["server", "train", "clients"], ...], Field(strict=False, min_length=1)] = ("server",)
    examples: Annotated[int, Field(ge=1)] = 500
    normalisation: Literal["interpolate", "base", "recompute"] = "interpolate"
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    bands: Annotated[float, Field(ge=0, lt=1)] = 0.95
    measures: Annotated[tuple[MeasureName, ...], Field(strict=False)] = ("distances",)
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
        for name in value:
            if info.data.get("examples", least := MEASURES[name].least_examples) < least:
                raise ValueError(
                    f"examples = {info.data['examples']} must be at least {least} where measures hold {name}"
                )
        on_data = [name for name in value if MEASURES[name].on_data]
        if on_data and set(info.data.get("on", ())) == {"clients"}:
            names = ", ".join(on_data)
            raise ValueError(f"on 'clients' only barriers are measured, not {names}; add 'server' to barriers.on")
        return value


PERTURBATION = re.compile(r"(fgsm|noise):((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)")
EvaluatedModel = Literal["personalised", "global", "trained", "fine-tuned"]


class EvaluationConfig(Table):
    """``[evaluation]``: which models of each client are evaluated, and ``on`` which data besides its own.

    Besides the client's ``personalised`` model, with what it next takes from the server, and the ``global`` one: its
    model right after local training (``trained``), and the personalised one after ``fine_tune_epochs`` more on its
    training data (``fine-tuned``), which is then discarded. ``fine_tune_layers`` is a group, or, with ``auto``, the one
    that the strategy names. Clients fine-tune in each ``fine_tune_every``-th round, 0 for none, and in the last one.
    With ``on = ["test", "server"]`` every client's models are measured on the server's test data too. The server's
    models are also measured on ``perturbed`` test data, such as ``["fgsm:0.1", "noise:0.2"]``: inputs moved by the size
    along the sign of the loss's gradient, or by Gaussian noise of that standard deviation. Sizes are in units of the
    normalised inputs. ``metrics`` are measured besides the loss and the task's main metric, on all data.
    ``save_predictions`` writes what the final models predict for each test example.
    """

    models: Annotated[tuple[EvaluatedModel, ...], Field(strict=False)] = ("personalised", "global")
    on: Annotated[tuple[Literal["test", "server"], ...], Field(strict=False)] = ("test",)
    fine_tune_epochs: Annotated[int, Field(ge=1)] = 5
    fine_tune_layers: str = "auto"
    fine_tune_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    fine_tune_every: Annotated[int, Field(ge=0)] = 0
    perturbed: Annotated[tuple[str, ...], Field(strict=False)] = ()
    metrics: Annotated[tuple[Annotated[str, AfterValidator(one_of(METRICS))], ...], Field(strict=False)] = ()
    save_predictions: bool = False

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
                    f"{as_toml(text)} is neither"
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
    mean over the clients; ``accuracy`` is the main metric of a task that has none.
    """

    patience: Annotated[int, Field(ge=0)] = 0
    metric: SelectingMetric = MAIN


class CheckpointsConfig(Table):
    """``[checkpoints]``: which models stay on disk. Like the engine, it does not name a run.

    ``keep = "last"`` keeps those of the last checkpoint, from which a run resumes; ``best`` also those of the best
    rounds, by accuracy and by loss on the clients' validation data, as ``fedsim compare --at best`` finds them; ``all``
    every checkpoint. As ``best`` writes a checkpoint of each round that is the best so far, ``auto`` is ``best`` where
    every round has one anyway, and ``last`` where ``checkpoint_every`` is greater than 1.
    """

    keep: Literal["auto", "last", "best", "all"] = "auto"


class EngineConfig(Table):
    """``[engine]``: where the clients run. It changes the time, never the numbers, so it does not name a run.

    ``workers`` is the number of threads (local) or actors (ray), 0 for one per processor; ``gpus_per_worker`` may be
    a fraction. ``cohort`` clients train at once as one vectorised computation, whose numbers agree with those of one
    after the other to float tolerance; ``auto`` is whatever is faster on the device. A client that takes longer than
    ``deadline`` seconds is left out of its round. Client states beyond ``cache_bytes`` of memory are kept on disk.
    """

    name: Literal["local", "ray"] = "local"
    workers: Annotated[int, Field(ge=0)] = 0
    cohort: int | Literal["auto"] = "auto"
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    cache_bytes: Annotated[int, Field(ge=0)] = 2**30
    address: str | None = None
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("address")
    @classmethod
    def _of_a_cluster(cls, value: str | None) -> str | None:
        parts = ADDRESS.fullmatch(value or "")
        if value not in (None, "auto") and not (parts and 0 < int(parts["port"]) < 2**16):
            raise ValueError('must be "auto" or the host and port of a Ray cluster, such as "10.0.0.5:6379"')
        return value

    @field_validator("cohort", mode="before")
    @classmethod
    def _number_or_auto(cls, value: object) -> object:
        if value != "auto" and not (type(value) is int and value >= 1):
            raise ValueError('must be "auto" or a whole number of at least 1')
        return value


class TuneConfig(BaseModel):
    """``[tune]``: lists of values of settings; the best ones are chosen for each combination of the sweep separately.

    Before the runs, every combination of these values is run with ``seed`` (default: the first of the sweep) for
    ``rounds`` (default: those of the runs). The best by ``metric`` on the clients' validation data is then run with all
    seeds.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(init=False)

    rounds: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    metric: SelectingMetric = MAIN

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The values by dotted setting; empty if nothing is tuned."""
        return dict(self.__pydantic_extra__)

    @property
    def is_wanted(self) -> bool:
        """Whether the table has any setting."""
        return bool(self.model_fields_set)

    def combinations(self) -> list[dict[str, Any]]:
        """Return each combination of values by setting, in the order of the lists; the last setting changes first."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
