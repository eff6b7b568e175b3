"""The tables of an experiment's settings: typed, frozen records.

The tables that choose something by name (``[data]``, ``[partition]``, ``[model]``, ``[strategy]``) also hold the
options of what they choose; `fedsim.config.choices.resolve` checks those and writes out their defaults.
"""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fedsim.config.adapter import AdapterConfig
from fedsim.config.asymmetry import AsymmetryConfig
from fedsim.config.records import Choice, Table
from fedsim.options import auto_or_at_least
from fedsim.training.metrics import MAIN, be_selecting

ADDRESS = re.compile(r"(ray://)?(\[[0-9A-Fa-f:.]+\]|[\w.-]+):(?P<port>[0-9]{1,5})", re.ASCII)
SelectingMetric = Annotated[str, AfterValidator(be_selecting)]


class DataConfig(Choice):
    """``[data]``: the data set, how much of it is used, what is learnt, and how training images are augmented.

    Parameters
    ----------
    name
        Name of the data set, or a custom function, as ``module:function``.
    train_examples
        Size of a sample of the training set, in which each class keeps its share (default: all).
    test_examples
        Size of such a sample of the test set (default: all).
    server_examples
        Number of training examples that the server holds and no client gets, drawn in the same way: for methods that
        learn on the server (default: none).
    flip
        Whether half of the training images are mirrored.
    crop
        Pixels by which training images are padded before a window of the original size is cut out.
    task
        What is learnt. By default it follows from the targets: whole numbers are classes, or the next token; floats of
        0 and 1 are a yes or no, or several labels; other floats are numbers to predict.
    """

    name: str = "digits"
    train_examples: Annotated[int, Field(ge=1)] | None = None
    test_examples: Annotated[int, Field(ge=1)] | None = None
    server_examples: Annotated[int, Field(ge=1)] | None = None
    flip: bool = False
    crop: Annotated[int, Field(ge=0)] = 0
    task: Literal["auto", "classification", "next-token", "binary", "multi-label", "regression"] = "auto"


class PartitionConfig(Choice):
    """``[partition]``: how the training set is split across clients, and how much of each client's share is held out.

    Parameters
    ----------
    scheme
        Name of the scheme, or a custom function, as ``module:function``.
    validation
        Share of each client's examples that is held out as its validation data.
    test
        Share of each client's examples that is held out as its test data.
    test_skew
        Whether clients are tested on data ``alike`` their own, or on equal shares of all examples (``uniform``), which
        are set aside before the split.
    bins
        Number of ranges, of about as many examples each, that stand for classes where numbers are predicted.
    """

    KEY: ClassVar[str] = "scheme"

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
    """``[features]``: how the inputs of each client are changed, so that they differ from the others'.

    Parameters
    ----------
    skew
        Name of the skew, or a custom function, as ``module:function``.
    """

    KEY: ClassVar[str] = "skew"

    skew: str = "none"


class ModelConfig(Choice):
    """``[model]``: the architecture, its initial weights, and what of it is frozen.

    Parameters
    ----------
    name
        Name of the architecture, or a custom function or class, as ``module:attribute``.
    initial
        Whether all clients start from the same weights (``shared``), or each from its ``own``.
    head
        Layer expression of the layers that give the logits, if what the model does leaves this open.
    freeze
        Layer expression of the layers that keep their initial weights, as parameters without a gradient do.
    weights
        File of torch or safetensors with the weights that the global model starts from.
    weights_skip
        Layer expression of the layers that start from the seed, whatever the file has for them.
    adapter
        Small layers that train in place of the model's own, which are frozen then.
    asymmetry
        Fixed entries or gates that keep units from changing places.
    """

    FILES: ClassVar[tuple[str, ...]] = ("weights",)

    name: str = "mlp"
    initial: Literal["shared", "own"] = "shared"
    head: str = ""
    freeze: str = ""
    weights: str = ""
    weights_skip: str = ""
    adapter: AdapterConfig = AdapterConfig()
    asymmetry: AsymmetryConfig = AsymmetryConfig()

    @model_validator(mode="after")
    def _use_weights(self) -> Self:
        if self.weights_skip and not self.weights:
            raise ValueError(f"weights_skip = {self.weights_skip!r} needs weights, the file of which it skips layers")
        return self


class StrategyConfig(Choice):
    """``[strategy]``: what is averaged, and how.

    Parameters
    ----------
    name
        Name of the strategy, or a custom class, as ``module:Class``.
    buffers
        Running statistics: averaged with their layer (``shared``), kept by the client (``personal``), or computed from
        the client's training data again (``recompute``).
    precision
        Precision in which the sum of an average is kept.
    upload_precision
        Precision in which layers of float32 travel to the server: their ``own``, or rounded to ``bfloat16``; what the
        server averages and sends, and what clients keep, stays as it is.
    max_update_norm
        Largest L2 distance of an update from where its client began; larger ones are left out (default: no limit).
    """

    name: str = "full"
    buffers: Literal["shared", "personal", "recompute"] = "shared"
    precision: Literal["float64", "float32"] = "float64"
    upload_precision: Literal["own", "bfloat16"] = "own"
    max_update_norm: Annotated[float, Field(gt=0)] | None = None


class StopConfig(Table):
    """``[stop]``: end the run once the clients' personalised models are good enough, or no longer improve.

    Both are decided by the mean over the clients on their validation data.

    Parameters
    ----------
    patience
        Number of evaluations in a row without a better mean after which the run ends; 0 for never.
    target
        Mean at which the run ends, such as 0.9 for an accuracy of 90 % (default: none).
    metric
        Metric that must improve; ``accuracy`` is the main metric of a task that has none.
    """

    patience: Annotated[int, Field(ge=0)] = 0
    target: float | None = None
    metric: SelectingMetric = MAIN

    @property
    def by(self) -> str:
        """The setting that may end the run, the first of them, as text; empty if none does."""
        if self.patience:
            return f"stop.patience = {self.patience}"
        return "" if self.target is None else f"stop.target = {self.target:g}"


class CheckpointsConfig(Table):
    """``[checkpoints]``: which models stay on disk. Like the engine, it does not name a run.

    Parameters
    ----------
    keep
        ``last`` keeps the models of the last checkpoint, from which a run resumes; ``best`` also those of the best
        rounds, by accuracy and by loss on the clients' validation data, as ``fedsim compare --at best`` finds them;
        ``all`` every checkpoint. As ``best`` writes a checkpoint of each round that is the best so far, ``auto`` is
        ``best`` where every round has one anyway, and ``last`` where ``checkpoint_every`` is greater than 1.
    """

    keep: Literal["auto", "last", "best", "all"] = "auto"


class EngineConfig(Table):
    """``[engine]``: where the clients run. It changes the time, never the numbers, so it does not name a run.

    Parameters
    ----------
    name
        Threads of this process (``local``), or actors of Ray (``ray``).
    workers
        Number of threads or actors; 0 for one per processor.
    cohort
        Number of clients that train at once as one vectorised computation, whose numbers agree with those of one after
        the other to float tolerance; ``auto`` is whatever is faster on the device.
    deadline
        Seconds after which a client is left out of its round (default: no limit).
    cache_bytes
        Memory for the states of clients; those beyond it are kept on disk.
    address
        Existing Ray cluster: ``auto``, or its host and port (default: Ray starts on this machine).
    gpus_per_worker
        Share of a GPU that each actor gets.
    """

    name: Literal["local", "ray"] = "local"
    workers: Annotated[int, Field(ge=0)] = 0
    cohort: Annotated[int | Literal["auto"], BeforeValidator(auto_or_at_least(1))] = "auto"
    deadline: Annotated[float, Field(gt=0)] | None = None
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


class TuneConfig(Table):
    """``[tune]``: lists of values of settings; the best ones are chosen for each combination of the sweep separately.

    Before the runs, every combination of these values is run; the best one is then run with all seeds.

    Parameters
    ----------
    rounds
        Rounds of the runs that are compared (default: those of the experiment).
    seed
        Seed of the runs that are compared (default: the first of the sweep).
    metric
        Metric, on the clients' validation data, by which the best combination is chosen.
    at
        Round by which it is chosen: the ``last`` one, which comparisons show by default, or the ``best`` one of each
        run, for comparisons with ``--at best``.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(init=False)

    rounds: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    metric: SelectingMetric = MAIN
    at: Literal["last", "best"] = "last"

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The values by dotted setting; empty if nothing is tuned."""
        return dict(self.__pydantic_extra__)

    @property
    def is_wanted(self) -> bool:
        """Whether the table has any setting."""
        return bool(self.model_fields_set)
