"""What travels in Flower messages between the strategy and the clients, and how it is written.

Names of records and keys follow Flower's own strategies, so that an ordinary Flower ``ClientApp`` can answer:

========== ============ =============================================================================
direction  record       meaning
========== ============ =============================================================================
to client  ``arrays``   the layers that the client takes from the server
to client  ``config``   ``server-round``; for training ``upload``, the keys to send back, ``keep``, the keys whose
                        values the client keeps, ``plan``, the local plan as JSON, ``probe``, whether the analysis
                        wants the rest of the model too, ``measure``, whether the client evaluates its model right
                        after training, ``in-bfloat16``, whether it rounds what it sends, and ``max-norm``, the
                        largest update that it may send, if there is a limit; for evaluation ``upload`` of the next
                        round, ``models``, what is measured, ``fine-tune``, the layers that are
                        fine-tuned, and ``unseen``, for a client that never trains
to client  ``global``   for evaluation, if the client evaluates the global model: its entries that differ from what was
                        taken
to server  ``arrays``   the shared layers after training
to server  ``metrics``  ``num-examples`` and whatever the client measured
to server  ``probe``    where asked for: the entries that are not in ``arrays``; not counted as traffic
to server  ``measured`` a model whose barriers the strategy gets in the place of the client's own; not counted
to server  ``config``   ``missing``, why the client's own model has no finite loss; only if that is so
to server  ``config``   ``update-norm``, the L2 distance of ``arrays`` from where the client began; only if it began
                        with a value of its own of one of these layers, which the server does not have, or does not
                        send some entries, which are zeros
to server  ``config``   ``stale``, if the client sends again what it sent before; only where ``[faults]`` asks for it
both       others       named parameter sets of the method, such as control variates
========== ============ =============================================================================
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, Self

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedsim.models.params import Params
from fedsim.models.tensors import name_type
from fedsim.training import LocalPlan, Phase

ARRAYS, CONFIG, GLOBAL, METRICS = "arrays", "config", "global", "metrics"
PROBE, MEASURED = "probe", "measured"
# Of a client's state.
MODEL = "model"
OPTIMIZER = "momentum"  # what the optimiser keeps, under the name that it has in checkpoints of SGD with momentum
EARLIER = "earlier-reply"  # what a client may send again, where [faults] asks for it
RESERVED = (ARRAYS, CONFIG, GLOBAL, METRICS, PROBE, MEASURED, MODEL, OPTIMIZER, EARLIER)
SERVER_ROUND, UPLOAD, KEEP, PLAN, NUM_EXAMPLES = "server-round", "upload", "keep", "plan", "num-examples"
MODELS, FINE_TUNE, UNSEEN, MEASURE = "models", "fine-tune", "unseen", "measure"
IN_BFLOAT16, MAX_NORM = "in-bfloat16", "max-norm"
STALE, NORM = "stale", "update-norm"
MISSING, NO_LOSS = "missing", "its training loss is not finite"
_NARROW_TYPES = tuple(getattr(torch, name) for name in dir(torch) if name.startswith(("bfloat16", "float8_")))
CLIENT_RAISED = 2  # Flower's code for an exception in the ClientApp


class TensorArray(Array):
    """A Flower array that holds a tensor, which is written as bytes only where it leaves fedsim's own engines.

    Parameters
    ----------
    tensor
        Tensor that is shared, not copied: its sender must not change it any more.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self.dtype = name_type(tensor.dtype)
        self.shape = tuple(tensor.shape)
        self.stype = "numpy.ndarray"

    @cached_property
    def data(self) -> bytes:  # type: ignore[override]
        """The tensor in NumPy's file format, written when it is first asked for."""
        return Array(_of_tensor(self.tensor)).data

    def numpy(self) -> np.ndarray:
        """Return a copy, as Flower's own arrays do: a client may change it."""
        return _of_tensor(self.tensor).copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorArray._of_numpy, (_of_tensor(self.tensor), self.dtype)

    @staticmethod
    def _of_numpy(values: np.ndarray, dtype: str) -> "TensorArray":
        return TensorArray(_to_tensor(values, dtype))


def narrowed(params: Params) -> Params:
    """Return entries of float32 rounded to bfloat16, and all others as they are."""
    return {key: value.bfloat16() if value.dtype == torch.float32 else value for key, value in params.items()}


def encode(params: Params) -> ArrayRecord:
    """Return parameters as a Flower record with the same keys, which shares their memory."""
    return record_of({key: TensorArray(value) for key, value in params.items()})


def record_of(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Return arrays as a record; Flower's constructor would write each of them as bytes."""
    record = ArrayRecord()
    for key, array in arrays.items():
        record[key] = array
    return record


def decode(record: Mapping[str, Array]) -> Params:
    """Read parameters from a Flower record; they may share its memory, so they must not be changed in place."""
    return {
        key: array.tensor if isinstance(array, TensorArray) else _to_tensor(array.numpy(), array.dtype)
        for key, array in record.items()
    }


def _of_tensor(tensor: Tensor) -> np.ndarray:
    """Return a tensor's values; those of a type that NumPy lacks, such as bfloat16, as float32, which has them all."""
    try:
        return tensor.cpu().numpy()
    except TypeError:
        return tensor.cpu().to(torch.complex64 if tensor.is_complex() else torch.float32).numpy()


def _to_tensor(values: np.ndarray, dtype: str) -> Tensor:
    """Return values as a tensor: of their own type, as conversion would hide a wrong one, unless NumPy lacks that."""
    tensor, named = torch.from_numpy(values), _torch_type(dtype)
    return tensor.to(named) if named in types_written_as(tensor.dtype) else tensor


def types_written_as(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Return the types that NumPy lacks and whose values travel in this one."""
    return {torch.float32: _NARROW_TYPES, torch.complex64: (torch.complex32,)}.get(dtype, ())


def _torch_type(name: str) -> torch.dtype | None:
    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else None


def arrays_of(content: RecordDict, name: str) -> Mapping[str, Array]:
    """Return the arrays of a record; none if there is no such record.

    Notes
    -----
    Flower's ``content.array_records`` shows the same, through an object that keeps all of it alive until Python looks
    for cycles.
    """
    record = content.get(name)
    return record if isinstance(record, ArrayRecord) else {}


def sets_of(content: RecordDict) -> dict[str, Mapping[str, Array]]:
    """Return the named parameter sets that a message or a client's state holds besides the records with other uses."""
    return {
        name: record for name, record in content.items() if isinstance(record, ArrayRecord) and name not in RESERVED
    }


def settings_of(content: RecordDict) -> Mapping[str, Any]:
    """Return the settings of a message to a client."""
    settings = content[CONFIG]
    assert isinstance(settings, ConfigRecord)
    return settings


def said(content: RecordDict, name: str) -> Any:
    """Return what a client says of itself under one of the names above; None if it says nothing."""
    record = content.get(CONFIG)
    return record.get(name) if isinstance(record, ConfigRecord) else None


def say(content: RecordDict, name: str, value: str | float | bool) -> None:
    """Write what `said` reads."""
    record = content.setdefault(CONFIG, ConfigRecord())
    assert isinstance(record, ConfigRecord)
    record[name] = value


def norm_of(content: RecordDict) -> float | None:
    """Return how far a client says that its update is from where it began; None if it says no number."""
    norm = said(content, NORM)
    return float(norm) if isinstance(norm, int | float) else None


def is_stale(content: RecordDict) -> bool:
    """Return whether a client sends again what it sent before."""
    return bool(said(content, STALE))


def missing_of(content: RecordDict) -> str:
    """Return why a client's own model has no finite loss, as it says; empty if it has one."""
    return str(said(content, MISSING) or "")


def say_missing(content: RecordDict, reason: str) -> None:
    """Write what `missing_of` reads; nothing without a reason."""
    if reason:
        say(content, MISSING, reason)


def size_bytes(array: Array) -> int:
    """Return the bytes of an array's values, without any framing."""
    # torch has types that NumPy lacks, such as bfloat16.
    dtype = _torch_type(array.dtype) or np.dtype(array.dtype)
    return math.prod(array.shape) * dtype.itemsize


def numbers_of(content: RecordDict) -> dict[str, float]:
    """Return the numbers that a client measured; lists are left out."""
    record = content.get(METRICS)
    values = record.items() if isinstance(record, MetricRecord) else ()
    return {key: float(value) for key, value in values if not isinstance(value, list)}


def measurements(values: Mapping[str, float]) -> MetricRecord:
    """Write measurements as a Flower record."""
    record = MetricRecord()
    for name, value in values.items():
        record[name] = value
    return record


@lru_cache(maxsize=16)  # all clients of a round have the same
def _plan_of(text: str) -> LocalPlan:
    return LocalPlan(tuple(Phase(**phase) for phase in json.loads(text)))


@dataclass(frozen=True)
class Instructions:
    """What the server asks of a client for training.

    Parameters
    ----------
    upload
        State-dict keys to send back.
    keep
        State-dict keys whose values the client keeps; all others it takes from the server when it takes part again.
    probe
        Whether the analysis wants the other entries too.
    measure
        Whether the client evaluates its model right after training.
    in_bfloat16
        Whether it sends entries of float32 back in bfloat16.
    max_norm
        Largest L2 distance of what it sends from where it began; unlimited if not given.
    """

    server_round: int
    upload: tuple[str, ...]
    keep: tuple[str, ...]
    plan: LocalPlan
    probe: bool = False
    measure: bool = False
    in_bfloat16: bool = False
    max_norm: float | None = None

    def write(self) -> dict[str, int | float | bool | str | list[str]]:
        """Return the settings for a Flower config."""
        limit: dict[str, float] = {} if self.max_norm is None else {MAX_NORM: self.max_norm}
        return {
            **limit,
            SERVER_ROUND: self.server_round,
            UPLOAD: list(self.upload),
            KEEP: list(self.keep),
            PLAN: json.dumps([asdict(phase) for phase in self.plan.phases]),
            PROBE: self.probe,
            MEASURE: self.measure,
            IN_BFLOAT16: self.in_bfloat16,
        }

    @classmethod
    def of(cls, message: Message) -> Self:
        """Read the settings of a message to a client."""
        return cls.read(settings_of(message.content))

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self:
        """Read the settings that `write` returned.

        Raises
        ------
        ValueError
            If there are others, such as a step size that an overridden `configure_train` sends.
        """
        read = cls(
            config[SERVER_ROUND],
            tuple(config[UPLOAD]),
            tuple(config[KEEP]),
            _plan_of(config[PLAN]),
            probe=config[PROBE],
            measure=config[MEASURE],
            in_bfloat16=config[IN_BFLOAT16],
            max_norm=config.get(MAX_NORM),
        )
        if unknown := config.keys() - read.write().keys():
            raise ValueError(
                f"{min(unknown)!r} in the config of a message is not read by clients; say it in local_plan, or by an "
                "option that the client rule reads"
            )
        return read
