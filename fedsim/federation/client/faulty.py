"""Clients that are hit by a fault of ``[faults]``: what they send, or why they send nothing."""

import os
from collections.abc import Callable, Sequence

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict

from fedsim.config.faults import LATE
from fedsim.errors import ClientError
from fedsim.federation.client.reasons import CRASHED
from fedsim.federation.client.state import (
    TRAINED,
    UPLOADED,
    client_of,
    is_unknown,
    metric_name,
    own_model,
    size_of,
    start_of,
)
from fedsim.federation.federation import Federation
from fedsim.federation.injection import Injected, injected_into
from fedsim.models.params import Params, flat_copy
from fedsim.strategy import messages
from fedsim.strategy.messages import EARLIER, Instructions

Request = tuple[Message, Context]
Reply = RecordDict | ClientError
Measurable = tuple[Reply, Params]  # with from where the size of the update counts


def train_with_faults(
    federation: Federation,
    requests: Sequence[Request],
    train: Callable[[Sequence[Request]], list[Measurable]],
    *,
    dies: bool,
) -> list[Reply]:
    """Return the replies to training messages; clients that no fault keeps from it train together.

    Parameters
    ----------
    train
        Function that trains clients without faults.
    dies
        Whether a crash ends this process. Otherwise the client fails as if it had.
    """
    replies: list[Reply | None] = []
    healthy: list[tuple[Request, Injected]] = []
    for request in requests:
        injected = injected_into(federation, request[0], client_of(request[1]))
        replies.append(reply := _instead(federation, request, injected, dies=dies))
        if reply is None:
            healthy.append((request, injected))
    trained = train([request for request, _ in healthy]) if healthy else []
    for ((message, context), injected), (reply, start) in zip(healthy, trained, strict=True):
        if isinstance(reply, RecordDict) and injected.kind == "explode":
            reply = _exploded(federation, message, reply, start)
        if isinstance(reply, RecordDict) and federation.config.faults.stale:
            _remember(context, reply)
        replies[replies.index(None)] = reply
    return [reply for reply in replies if reply is not None]


def _instead(federation: Federation, request: Request, injected: Injected, *, dies: bool) -> Reply | None:
    """Return what a client replies instead of training; None if it trains."""
    message, context = request
    match injected.kind:
        case "drop_out":
            return ClientError("it did not reply")
        case "crash":
            if dies:
                os._exit(1)
            return ClientError(CRASHED)
        case "exception":
            return ClientError("RuntimeError: an exception in the client")
        case "nan":
            return _nan(federation, request)
        case "stale":
            return _again(federation, message, context)
        case kind if kind == LATE:
            deadline = federation.config.faults.deadline
            return ClientError(
                f"it is late; it needs {injected.seconds:.4g} simulated seconds, and the deadline is {deadline:g}"
            )
    return None


def _nan(federation: Federation, request: Request) -> Reply:
    message, context = request
    asked = Instructions.of(message)
    values = {key: federation.initial[key] for key in asked.upload}
    if not values:  # a round that shares no layer
        return ClientError("its update is not finite")
    values = messages.narrowed(values) if asked.in_bfloat16 else values
    n = len(federation.data.client(client_of(context)).train[1])
    arrays = {key: torch.full_like(value, torch.nan) for key, value in values.items()}
    return RecordDict(
        {messages.ARRAYS: messages.encode(arrays), messages.METRICS: MetricRecord({messages.NUM_EXAMPLES: n})}
    )


def _exploded(federation: Federation, message: Message, reply: RecordDict, start: Params) -> Reply:
    """Let an update go farther from the start; running statistics stay as they are, as variances have a sign."""
    factor, layers = federation.config.faults.explode_factor, federation.layers
    parameters = set(layers.keys(layers.names, buffers=False))
    sent = messages.decode(messages.arrays_of(reply, messages.ARRAYS))
    far = {
        key: (start[key] + factor * (value - start[key].to(value.device))).to(value.dtype)
        if key in parameters
        else value
        for key, value in sent.items()
    }
    try:
        norm = size_of(far, start, Instructions.of(message).max_norm)
    except ClientError as error:
        return error  # so that the client resumes from before
    reply[messages.ARRAYS] = messages.encode(flat_copy(far))
    if messages.norm_of(reply) is not None:
        messages.say(reply, messages.NORM, norm)
    return reply


def _remember(context: Context, reply: RecordDict) -> None:
    """Keep what a client sends, all as arrays, since nothing else gets into a checkpoint."""
    arrays = {messages.ARRAYS: messages.arrays_of(reply, messages.ARRAYS)} | messages.sets_of(reply)
    numbers = {
        name: torch.tensor(value, dtype=torch.float64)
        for name, value in messages.numbers_of(reply).items()
        if not name.startswith(f"{TRAINED}/")
    }
    if (norm := messages.norm_of(reply)) is not None:
        numbers[messages.NORM] = torch.tensor(norm, dtype=torch.float64)
    arrays[messages.METRICS] = messages.encode(numbers)
    context.state[EARLIER] = messages.record_of(
        {f"{name}/{key}": array for name, record in arrays.items() for key, array in record.items()}
    )


def _again(federation: Federation, message: Message, context: Context) -> RecordDict | None:
    """Return what a client has sent before; None if that is nothing."""
    parts: dict[str, ArrayRecord] = {}
    # In an order that does not depend on whether the state comes from a checkpoint.
    for path, array in sorted(messages.arrays_of(context.state, EARLIER).items()):
        name, _, key = path.partition("/")
        parts.setdefault(name, ArrayRecord())[key] = array
    if not parts:
        return None
    metrics = {key: value.item() for key, value in messages.decode(parts.pop(messages.METRICS)).items()}
    norm = metrics.pop(messages.NORM, None)
    # It does not train again.
    passed = (metric_name(UPLOADED, "train", f"{direction}_examples") for direction in ("forward", "backward"))
    metrics |= dict.fromkeys(passed, 0.0)
    reply = RecordDict({**parts, messages.METRICS: messages.measurements(metrics)})
    messages.say(reply, messages.STALE, True)
    sent = messages.decode(messages.arrays_of(reply, messages.ARRAYS))
    own = own_model(federation, context)
    start = start_of(message, own, sent)
    if norm is None and is_unknown(federation, message, start):
        norm = size_of(sent, start, None)
    if norm is not None:
        messages.say(reply, messages.NORM, norm)
    if Instructions.of(message).probe:
        reply[messages.PROBE] = messages.encode({key: value for key, value in own.items() if key not in sent})
    return reply
