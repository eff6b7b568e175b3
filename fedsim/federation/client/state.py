"""What a client has: its own model and whatever else it keeps between messages, and what a message brings it."""

from collections.abc import Iterable

from flwr.app import Context, Message

from fedsim.errors import ClientError
from fedsim.federation.federation import Federation
from fedsim.models.params import Params, combine, is_finite, moves
from fedsim.models.tensors import is_same
from fedsim.seeds import rng
from fedsim.strategy import messages
from fedsim.strategy.messages import MODEL, OPTIMIZER
from fedsim.strategy.replies import checked_norm
from fedsim.training import Local, Network
from fedsim.training.checked import personalised_of

UPLOADED, PERSONALISED, GLOBAL = "uploaded", "personalised", "global"
TRAINED, FINE_TUNED, NEIGHBOURS = "trained", "fine-tuned", "knn"


def client_of(context: Context) -> int:
    """Return the client's index."""
    return int(context.node_config["partition-id"])


def stored(context: Context, name: str) -> Params:
    """Return what the client keeps under a name; nothing if there is no such record."""
    return messages.decode(messages.arrays_of(context.state, name))


def own_model(federation: Federation, context: Context) -> Params:
    """Return the client's initial model with what it has kept, which may be all of it."""
    kept = stored(context, MODEL)
    initial = (
        federation.initial if kept.keys() == federation.initial.keys() else federation.initial_of(client_of(context))
    )
    return combine(initial, kept)


def not_finite(federation: Federation, context: Context) -> str:
    """Return what of all that a client keeps is not finite: layers, sets, optimiser state; empty if all of it is."""
    kept, start = stored(context, MODEL), federation.initial
    broken = [] if is_finite(kept) else [key for key, value in kept.items() if not is_finite({key: value})]
    broken = [key for key in broken if is_finite({key: start[key]})]  # masks are infinite from the start
    names = list(dict.fromkeys(map(federation.layers.of_key, broken)))
    sets = [name for name in messages.sets_of(context.state) if not is_finite(stored(context, name))]
    parts = [f"its personal layers {', '.join(names)}"] * bool(names) + [f"its set {name}" for name in sets]
    parts += ["its optimiser state"] * (not is_finite(stored(context, OPTIMIZER)))
    return f"{' and '.join(parts)} {'is' if len(parts) == 1 and not names else 'are'} not finite" if parts else ""


def taken_from(message: Message) -> Params:
    """Return what a message brings from the server."""
    return messages.decode(messages.arrays_of(message.content, messages.ARRAYS))


def start_of(message: Message, began: Params, keys: Iterable[str], unsent: Params | None = None) -> Params:
    """Return from where the size of an update counts: what the client received, else what it began to train with.

    Entries that are not sent are zeros here too.

    Parameters
    ----------
    began
        The model as the client began to train it.
    keys
        Entries of the update.
    unsent
        As in `fedsim.training.Finished`.
    """
    taken = taken_from(message)
    start = {key: taken.get(key, began[key]) for key in keys}
    for key, mask in (unsent or {}).items():
        if key in start:
            start[key] = start[key].masked_fill(mask.to(start[key].device), 0)
    return start


def is_unknown(federation: Federation, message: Message, start: Params) -> bool:
    """Return whether a client began with a value that the server does not have: neither received nor its initial one.

    Parameters
    ----------
    start
        What `start_of` returned.
    """
    taken = messages.arrays_of(message.content, messages.ARRAYS)
    own = {key: value for key, value in start.items() if key not in taken and moves(value)}
    return any(
        not is_same(value.to(federation.initial[key].device), federation.initial[key]) for key, value in own.items()
    )


def size_of(sent: Params, start: Params, max_norm: float | None) -> float:
    """Return how far what a client sends is from where it began, checked before it keeps anything of the round.

    Raises
    ------
    ClientError
        If it is farther than the server's limit, or not finite.
    """
    wide = {key: value.to(start[key].dtype) for key, value in sent.items()}  # what the server makes of bfloat16
    try:
        return checked_norm(wide, start, max_norm)
    except ValueError as error:
        raise ClientError(str(error)) from error


def local_of(federation: Federation, message: Message, context: Context, ahead: int = 0) -> Local:
    """Return a client with what the message brings, as its rule sees it ``ahead`` rounds after the message's."""
    client, config = client_of(context), federation.config
    settings = messages.settings_of(message.content)
    server_round = int(settings[messages.SERVER_ROUND]) + ahead
    kept, brought = (messages.sets_of(content) for content in (context.state, message.content))
    own = own_model(federation, context)
    params = combine(own, taken_from(message))
    if federation.client_rule.sees_client:  # otherwise they are only loaded into the model
        own, params = _on(federation, own), _on(federation, params)
    sets = {name: messages.decode(record) for name, record in (kept | brought).items()}
    data = federation.data.client(client)
    inputs, targets = data.train
    return Local(
        server_round=server_round,
        client=client,
        params=params,
        sets={name: _on(federation, entries) for name, entries in sets.items()},
        own=own,
        inputs=inputs,
        targets=targets,
        settings=federation.local,
        rng=rng(config.seed, "rule", server_round, client),
        network=Network(federation.model()),
        read_validation=lambda: data.validation,
        training_loss=federation.objective_of(targets),
        shared=tuple(dict.fromkeys(map(federation.layers.of_key, settings.get(messages.UPLOAD, ())))),
    )


def _on(federation: Federation, params: Params) -> Params:
    """Return copies of parameters on the run's device.

    Those of a message or a checkpoint may be elsewhere, and lie in memory as it comes, by which kernels round.
    """
    return {key: value.to(federation.device, copy=True) for key, value in params.items()}


def personalised_model(federation: Federation, message: Message, context: Context) -> Params:
    """Return the client's own model with what the message brings, as the strategy's rule makes it of them."""
    rule = federation.client_rule
    if not rule.personalises:
        return combine(own_model(federation, context), taken_from(message))
    # As the client would begin the next round.
    local = federation.start_of(local_of(federation, message, context, ahead=1))
    return personalised_of(rule, local, federation.initial)


def metric_name(model: str, split: str, metric: str) -> str:
    """Return the key of a client's measurement, e.g. ``personalised/test/loss``."""
    return f"{model}/{split}/{metric}"
