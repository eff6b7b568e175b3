"""What clients send up, read from Flower's messages and checked; their measurements averaged."""

import math
from collections.abc import Mapping, Sequence

import torch
from flwr.app import Message, MetricRecord

from fedsim.models.params import is_finite
from fedsim.strategy import messages
from fedsim.strategy.updates import ClientUpdate


def read_update(
    client: int, reply: Message, expected: Mapping[str, torch.Tensor], *, partial: bool = False
) -> ClientUpdate:
    """Read a client's reply to a training message.

    Parameters
    ----------
    expected
        The entries that the client was asked for, with values of the right shape, in the model's order.
    partial
        Whether it may leave some of them out.

    Raises
    ------
    ValueError
        If the reply is an error, has other entries or shapes, values that are not finite, or no positive weight.
    """
    if reply.has_error():
        raise ValueError((reply.error.reason or f"error {reply.error.code}").strip().splitlines()[-1])
    metrics = read_metrics(reply)
    weight = metrics.pop(messages.NUM_EXAMPLES, 0.0)
    if not 0 < weight < math.inf:
        raise ValueError(f"its {messages.NUM_EXAMPLES} is {weight}; it must be positive")
    shared = messages.decode(messages.arrays_of(reply.content, messages.ARRAYS))
    if not shared.keys() <= expected.keys() or not (partial or shared.keys() >= expected.keys()):
        raise ValueError(f"it sent the entries {sorted(shared)}, not {sorted(expected)}")
    for key, value in shared.items():
        if value.shape != expected[key].shape:
            raise ValueError(f"{key} has shape {tuple(value.shape)}, not {tuple(expected[key].shape)}")
    if not is_finite(shared):
        wrong = next(key for key, value in shared.items() if not is_finite({key: value}))
        raise ValueError(f"{wrong} has values that are not finite")
    ordered = {key: shared[key] for key in expected if key in shared}
    sets = {name: messages.decode(record) for name, record in messages.sets_of(reply.content).items()}
    for name, entries in sets.items():
        if not is_finite(entries):
            raise ValueError(f"its {name} has values that are not finite")
    probe = messages.decode(messages.arrays_of(reply.content, messages.PROBE))
    return ClientUpdate(client, ordered, weight, metrics, probe, sets, messages.missing_of(reply.content))


def read_metrics(reply: Message) -> dict[str, float]:
    """Return the numbers that a client measured; lists are left out."""
    record = reply.content.get(messages.METRICS)
    values = record.items() if isinstance(record, MetricRecord) else ()
    return {key: float(value) for key, value in values if not isinstance(value, list)}


def weighted_metrics(weighted: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Return the weighted mean of each metric over those clients that have it."""
    means = {}
    for name in sorted({name for _, metrics in weighted for name in metrics}):
        known = [(weight, metrics[name]) for weight, metrics in weighted if name in metrics]
        total = sum(weight for weight, _ in known)
        if total > 0:
            means[name] = sum(weight * value for weight, value in known) / total
    return means
