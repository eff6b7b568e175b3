"""What clients send up, read from Flower's messages and checked; their measurements averaged."""

import math
from collections.abc import Mapping, Sequence

import torch
from flwr.app import Message
from torch import Tensor

from fedsim.errors import error_line
from fedsim.models.distance import distance
from fedsim.models.params import Params, is_finite, moves
from fedsim.models.variance import variances
from fedsim.strategy import messages
from fedsim.strategy.updates import ClientUpdate, misfit


def read_update(
    client: int,
    reply: Message,
    received: Params,
    model: Params,
    *,
    partial: bool = False,
    max_norm: float | None = None,
    in_bfloat16: bool = False,
) -> ClientUpdate:
    """Read a client's reply to a training message.

    Parameters
    ----------
    received
        The entries that the client was asked for, in the model's order, with the values that it received.
    model
        Model with all entries, whose shapes and types those of a probe must have too.
    partial
        Whether it may leave some of them out.
    max_norm
        Largest L2 distance of its update from where it began; unlimited if not given.
    in_bfloat16
        Whether it was asked for entries of float32 in bfloat16.

    Raises
    ------
    ValueError
        If the reply is an error, has other entries, shapes or types, values that are not finite, no positive weight, or
        if the update is too large.
    """
    if reply.has_error():
        raise ValueError((reply.error.reason or f"error {reply.error.code}").strip().splitlines()[-1])
    metrics = messages.numbers_of(reply.content)
    weight = metrics.pop(messages.NUM_EXAMPLES, 0.0)
    if not 0 < weight < math.inf:
        raise ValueError(f"its {messages.NUM_EXAMPLES} is {weight}; it must be positive")
    shared = _read_arrays(reply, messages.ARRAYS, received)
    if in_bfloat16:
        wide = {key for key, value in received.items() if value.dtype == torch.float32}
        shared = {
            key: value.float() if value.dtype == torch.bfloat16 and key in wide else value
            for key, value in shared.items()
        }
    if not shared.keys() <= received.keys() or not (partial or shared.keys() >= received.keys()):
        raise ValueError(f"it sent the entries {sorted(shared)}, not {sorted(received)}")
    ordered = {key: shared[key] for key in received if key in shared}
    probe = _read_arrays(reply, messages.PROBE, model)
    measured = _read_arrays(reply, messages.MEASURED, model)
    if unknown := (probe.keys() | measured.keys()) - model.keys():
        raise ValueError(f"it sent the entry {min(unknown)} of its own model, which is no entry of the model")
    if wrong := misfit(ordered, received) or misfit(probe, model) or misfit(measured, model):
        raise ValueError(wrong)
    norm = checked_norm(ordered, received, max_norm, messages.norm_of(reply.content))
    sets = {name: _read_arrays(reply, name) for name in messages.sets_of(reply.content)}
    for name, entries in sets.items():
        if not is_finite(entries):
            raise ValueError(f"its {name} has values that are not finite")
    missing = messages.missing_of(reply.content)
    spread = variances(ordered, [key for key, value in ordered.items() if moves(value)])
    is_stale = messages.is_stale(reply.content)
    return ClientUpdate(client, ordered, weight, metrics, probe, sets, measured, missing, norm, spread, is_stale)


def _read_arrays(reply: Message, name: str, like: Mapping[str, Tensor] | None = None) -> Params:
    """Return the tensors of a record of a reply.

    Parameters
    ----------
    like
        Tensors of the model by key. A client that knows NumPy's types only answers in float32 where the model has a
        type such as bfloat16, which NumPy lacks.

    Raises
    ------
    ValueError
        If they cannot be read.
    """
    record = messages.arrays_of(reply.content, name)
    try:
        found = messages.decode(record)
    except Exception as error:  # NumPy's, for bytes that are no array and types that torch lacks
        raise ValueError(f"its {name} cannot be read: {error_line(error)}") from error
    for key in found.keys() & (like or {}).keys():
        own = (like or {})[key].dtype
        if own in messages.types_written_as(found[key].dtype) and not isinstance(record[key], messages.TensorArray):
            found[key] = found[key].to(own)
    return found


def checked_norm(update: Params, received: Params, max_norm: float | None, told: float | None = None) -> float:
    """Return the L2 distance of an update from where the client began: what it received, and its own values otherwise.

    Parameters
    ----------
    told
        The distance, as a client says that began with values of its own, which the server does not have.

    Raises
    ------
    ValueError
        If the update has values that are not finite, or is too large.
    """
    # A sum in float32 costs least, and is precise enough to be compared with a thousand times the median.
    norm = distance(update, received, torch.float32 if max_norm is None else torch.float64) if told is None else told
    codes = {key: value for key, value in update.items() if value.is_floating_point() and not moves(value)}
    # Finite values may have squares that are not.
    if ((told is not None or not math.isfinite(norm)) and not is_finite(update)) or not is_finite(codes):
        wrong = next(key for key, value in update.items() if not is_finite({key: value}))
        raise ValueError(f"{wrong} has values that are not finite")
    if max_norm is not None and not norm <= max_norm:
        raise ValueError(
            f"its update is larger than max_update_norm; its L2 distance from where it began is {norm:.4g}, the "
            f"limit {max_norm:g}"
        )
    return norm


def weighted_metrics(weighted: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Return the weighted mean of each metric over those clients that have it."""
    means = {}
    for name in sorted({name for _, metrics in weighted for name in metrics}):
        known = [(weight, metrics[name]) for weight, metrics in weighted if name in metrics]
        total = sum(weight for weight, _ in known)
        if total > 0:
            means[name] = sum(weight * value for weight, value in known) / total
    return means
