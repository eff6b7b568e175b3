"""What ``[faults]`` does to a round as the server sees it: replies that come twice, simulated time, and the records."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Message

from fedsim.config.faults import KINDS, LATE
from fedsim.federation.client.state import UPLOADED
from fedsim.federation.federation import Federation
from fedsim.federation.injection import Injected, draw, examples_of, injected_into
from fedsim.federation.participants import participants
from fedsim.results.faults import fault_row
from fedsim.results.folder import metric_row
from fedsim.strategy import Received, Strategy, messages

SECONDS = "simulated_seconds"
NEVER_THERE = ("drop_out", "crash")  # they have no time of their own: the server waits until the deadline
MOST_DRAWS = 100_000
ACCEPTED = {
    "explode": "its update is {factor:g} times as far from what it received",
    "stale": "it sent its update of an earlier round again",
    "duplicate": "its reply came twice; the second is ignored",
}


class InjectedRound:
    """The faults of one round, by client; none without ``[faults]``.

    Parameters
    ----------
    sent
        Messages of the round.
    """

    def __init__(self, federation: Federation, sent: Iterable[Message]) -> None:
        self._faults, self._sizes = federation.config.faults, federation.data.split.train.sizes
        self._of: dict[int, Injected] = {}
        if self._faults.is_wanted:
            by_client = ((message.metadata.dst_node_id, message) for message in sent)
            self._of = {client: injected_into(federation, message, client) for client, message in by_client}
        self.kinds = {client: injected.kind for client, injected in self._of.items() if injected.kind}

    def replies(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies, some of them twice."""
        for reply in replies:
            client = reply.metadata.src_node_id
            if self.kinds.get(client) == "stale" and reply.has_content() and not messages.is_stale(reply.content):
                del self.kinds[client]  # it had not sent anything before
            yield reply
            if self.kinds.get(client) == "duplicate":
                yield reply

    @property
    def has_crashes(self) -> bool:
        """Whether a client was to end its worker."""
        return "crash" in self.kinds.values()

    def mark(self, left_out: Mapping[int, str]) -> dict[int, str]:
        """Return reasons that say which of them are injected."""
        return {client: f"{why} (injected)" if client in self.kinds else why for client, why in left_out.items()}

    def explain(self, left_out: Iterable[int]) -> bool:
        """Return whether all of these clients are left out by an injected fault."""
        return all(client in self.kinds for client in left_out)

    def fault_rows(self, server_round: int, received: Received) -> list[dict[str, Any]]:
        """Return a line of ``faults.jsonl`` for each client that was hit and whose update the strategy has."""
        kinds = {update.client: self.kinds[update.client] for update in received.updates if update.client in self.kinds}
        reasons = {kind: text.format(factor=self._faults.explode_factor) for kind, text in ACCEPTED.items()}
        return [fault_row(server_round, each, "accepted", reasons[kind], injected=kind) for each, kind in kinds.items()]

    def time_rows(self, server_round: int) -> list[dict[str, Any]]:
        """Return lines of ``metrics.jsonl``: simulated seconds of each client's training, and of the round."""
        if not self._faults.seconds_per_example:
            return []
        seconds = {
            client: injected.seconds
            for client, injected in self._of.items()
            if injected.seconds is not None and injected.kind not in NEVER_THERE
        }
        rows = [
            metric_row(server_round, client, "train", UPLOADED, SECONDS, value, self._sizes[client])
            for client, value in seconds.items()
        ]
        # The server waits for the last one that may come, or until the deadline if one does not.
        waited = max((value for client, value in seconds.items() if self.kinds.get(client) != LATE), default=0.0)
        if any(kind in (*NEVER_THERE, LATE) for kind in self.kinds.values()):
            waited = max(waited, self._faults.deadline or 0.0)
        return [*rows, metric_row(server_round, None, "train", UPLOADED, SECONDS, waited, len(self._of))]


def describe_faults(federation: Federation, strategy: Strategy) -> Iterator[str]:
    """Yield a line for each kind of fault: how many of the updates it hits, drawn as the run will draw them."""
    config, sizes = federation.config, federation.data.split.train.sizes
    if not config.faults.is_wanted:
        return
    drawn: list[Injected] = []
    sent: set[int] = set()
    asked, rounds = 0, 0
    for server_round in range(1, config.rounds + 1):
        if asked > MOST_DRAWS:
            break
        plan, rounds = strategy.local_plan(server_round), server_round
        for client in participants(config, server_round):
            asked += 1
            injected = draw(config, server_round, client, examples_of(config, plan, int(sizes[client])))
            if injected.kind == "stale" and client not in sent:
                injected = Injected("", injected.seconds)  # it trains, as the run will have it do
            if injected.kind in ("", *ACCEPTED):
                sent.add(client)
            drawn.append(injected)
    if after := sorted(each for each in config.faults.rounds if each > config.rounds):
        listed = ", ".join(map(str, after[:10])) + (" and more" if len(after) > 10 else "")
        none = "" if len(after) < len(config.faults.rounds) else "; no fault is injected"
        yield f"rounds of faults.rounds after the last round, {config.rounds}, in which nothing happens: {listed}{none}"
    within = f" in the first {rounds} of {config.rounds} rounds" if rounds < config.rounds else ""
    for kind in (*KINDS[:3], LATE, *KINDS[3:]):
        count, p = sum(injected.kind == kind for injected in drawn), getattr(config.faults, kind, None)
        if p or count:
            yield f"{kind}: {count} of {asked} updates{within}" + (f", with probability {p:g} each" if p else "")
    yield from _describe_time(config.faults.deadline, [each.seconds for each in drawn if each.seconds is not None])


def _describe_time(deadline: float | None, seconds: Sequence[float]) -> Iterator[str]:
    if seconds:
        longest, middle = max(seconds), statistics.median(seconds)
        limit = f"; later than {deadline:g} s is too late" if deadline else ""
        yield f"simulated training takes {middle:.4g} s in the median and {longest:.4g} s at most{limit}"
