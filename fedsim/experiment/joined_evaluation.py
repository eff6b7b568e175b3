"""Evaluation of a model that many clients have, in one pass over the data of all of them."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from flwr.app import ConfigRecord, Message

from fedsim.federation.client.state import GLOBAL, PERSONALISED
from fedsim.federation.federation import Federation
from fedsim.models.norms import counter_keys
from fedsim.models.params import Params, load_state_
from fedsim.strategy import Strategy, messages
from fedsim.training.evaluation import evaluate_joined, examples_at_a_time, is_of_batch
from fedsim.training.targets import number_of_targets

Part = Literal["test", "validation"]
# Batches whose examples are in memory at once. Which examples share a batch must not depend on threads.
BATCHES = 4


def can_join(federation: Federation, wanted: ConfigRecord) -> bool:
    """Return whether clients need not evaluate the global model themselves.

    They must where each recomputes the running statistics, where examples of a batch, or their losses, depend on each
    other or on the batch before, and where they measure models that only they have.
    """
    return (
        list(wanted.get(messages.MODELS, ())) == [PERSONALISED, GLOBAL]  # type: ignore[arg-type]
        and federation.config.strategy.buffers != "recompute"
        and not federation.keeps_something
        and federation.is_by_example
        and not is_of_batch(federation.criterion)
    )


def have_global_model(federation: Federation, strategy: Strategy, sent: Mapping[int, Message]) -> list[int]:
    """Return the clients whose personalised model is the global one, whatever they keep.

    Parameters
    ----------
    sent
        The clients' messages for evaluation, each with what its client takes from the server.
    """
    if federation.client_rule.personalises or federation.client_rule.has_network:
        return []
    counters = counter_keys(federation.model())
    model = {key: array for key, array in strategy.arrays.items() if key not in counters}
    are_whole: dict[int, bool] = {}  # by record, of which many clients have the same
    found = []
    for client, message in sent.items():
        taken = messages.arrays_of(message.content, messages.ARRAYS)
        if id(taken) not in are_whole:
            are_whole[id(taken)] = all(taken.get(key) is array for key, array in model.items())
        if are_whole[id(taken)]:
            found.append(client)
    return found


def measure_on_clients(
    federation: Federation, params: Params, part: Part, clients: Sequence[int], threads: int
) -> dict[int, dict[str, float]]:
    """Return the metrics of one model on a part of the data of each of these clients, with ``n``, by client.

    A group of clients for which the model raises is left out: one by one, each will say whether it is the reason.

    Notes
    -----
    Clients are joined in the order given until they fill a few batches, so that neither threads nor workers change
    which examples share a batch: the last bits of an output depend on that.
    """
    joined = list(_joined(federation, part, clients))

    def measure(thread: int) -> dict[int, dict[str, float]]:
        model, found = federation.model(), {}
        load_state_(model, params)
        for together in joined[thread::threads]:
            data = [getattr(federation.data.client(client), part) for client in together]
            try:
                results = evaluate_joined(model, data, federation.criterion, keep_outputs=bool(federation.metrics))
            except Exception:  # whatever a custom model raises
                continue
            for client, (_, targets), result in zip(together, data, results, strict=True):
                found[client] = federation.measured(result, targets) | {"n": number_of_targets(targets)}
        return found

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(measure, range(min(threads, len(joined)))))
    return {client: metrics for found in parts for client, metrics in found.items()}


def _joined(federation: Federation, part: Part, clients: Sequence[int]) -> Iterator[list[int]]:
    """Yield clients in groups with at most a few batches of examples, or a single one with more."""
    limit = BATCHES * examples_at_a_time(federation.device)
    sizes = getattr(federation.data.split, part).sizes
    together: list[int] = []
    examples = 0
    for client in clients:
        if together and examples + sizes[client] > limit:
            yield together
            together, examples = [], 0
        together.append(client)
        examples += sizes[client]
    if together:
        yield together
