"""Why clients are left out: reasons of one kind together, in a few words."""

import logging
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

NOT_FINITE = "not finite"
MOST_NAMES = 10
LARGE = 1000  # times the median norm of a round's updates
_ERROR = re.compile(r"(?:^|: )([A-Z]\w*)(?:: .*)? \(([^()]+, line \d+)\)")  # as `fedsim.errors.error_line` writes it
logger = logging.getLogger(__name__)


def kind_of(reason: str) -> str:
    """Return what reasons of one cause have in common: ``ValueError in model.py, line 12``, or ``not finite``."""
    if error := _ERROR.search(reason):
        return f"{error[1]} in {error[2]}"
    return NOT_FINITE if NOT_FINITE in reason else reason.partition(";")[0] or "no reason recorded"


def count_kinds(reasons: Iterable[str]) -> str:
    """Return how often each kind occurs, the most frequent first: ``not finite (10), it timed out after 5 s (2)``."""
    return name_counts(map(kind_of, reasons))


def name_counts(kinds: Iterable[str]) -> str:
    """Return how often each of these kinds occurs, the most frequent first."""
    return ", ".join(f"{kind} ({count})" for kind, count in Counter(kinds).most_common())


def all_failed(reasons: Mapping[int, str]) -> str:
    """Return why all clients failed: the first one's reason, or how often each kind occurs."""
    first, kinds = min(reasons), {kind_of(reason) for reason in reasons.values()}
    return f"client {first}: {reasons[first]}" if len(kinds) == 1 else count_kinds(reasons.values())


def by_kind(reasons: Mapping[int, str]) -> Iterator[tuple[list[int], str]]:
    """Yield, for each kind of reasons by client, its clients in order, and the reason of the first of them."""
    clients: dict[str, list[int]] = {}
    for client in sorted(reasons):
        clients.setdefault(kind_of(reasons[client]), []).append(client)
    for several in clients.values():
        yield several, reasons[several[0]]


def warn_of(
    server_round: int,
    reasons: Mapping[int, str],
    what: str = "left out of the average",
    verbs: tuple[str, str] = ("is", "are"),
) -> None:
    """Warn of what has become of clients, by default left out, in one line for each kind of reason."""
    for clients, reason in by_kind(reasons):
        who, verb = name_clients(clients), verbs[len(clients) > 1]
        why = f": {reason}" if len(clients) == 1 else f"; client {clients[0]}: {reason}"
        logger.warning("round %d: %s %s %s%s", server_round, who, verb, what, why)


def warn_of_size(server_round: int, norms: Mapping[int, float]) -> None:
    """Warn of updates whose norm is far larger than most others'.

    Parameters
    ----------
    norms
        L2 distance of each client's update from what the client received.
    """
    if len(norms) < 2:
        return
    # The lower of two in the middle: the larger of two updates must not hide itself.
    median = statistics.median_low(norms.values())
    large = [client for client, norm in sorted(norms.items()) if norm > LARGE * median]
    if large and median > 0:
        most = max(norms[client] for client in large)
        logger.warning(
            "round %d: the norm of the update of %s is over %d times the median of the round (%.3g, median %.3g); "
            "strategy.max_update_norm leaves updates out that are too large",
            *(server_round, name_clients(large), LARGE, most, median),
        )


def name_clients(clients: list[int]) -> str:
    """Return clients as a text: ``client 3``, ``clients 0, 2 and 5``, or the first ten and how many more."""
    if len(clients) == 1:
        return f"client {clients[0]}"
    names, others = list(map(str, clients[:MOST_NAMES])), len(clients) - MOST_NAMES
    *first, last = [*names, f"{others} more"] if others > 0 else names
    return f"clients {', '.join(first)} and {last}"
