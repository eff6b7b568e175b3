"""The work of one worker: messages that wait for it, and calls that it is running."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message

from fedsim.federation.engines.journal import Journal

# Long enough to be worth a call, which costs about a millisecond, and short enough for replies to flow.
CALL_MESSAGES, CALL_BYTES, CALL_SECONDS = 64, 2**25, 1.0


@dataclass(eq=False)
class Item:
    """A message to answer.

    Parameters
    ----------
    number
        Number under which its reply is awaited; None if a worker that died has answered it before, and only the state
        that it leaves is needed.
    deaths
        How often a worker died while running it.
    """

    message: Message
    number: int | None
    deaths: int = 0

    @property
    def client(self) -> int:
        """The client that must answer."""
        return self.message.metadata.dst_node_id


@dataclass(eq=False)
class Call:
    """Items that were sent together, and the future of their result."""

    result: Any
    items: list[Item]


@dataclass(eq=False)
class Queue:
    """Items that wait for a worker, and calls that run there, each in order."""

    waiting: deque[Item] = field(default_factory=deque)
    running: deque[Call] = field(default_factory=deque)

    def has_room(self, ahead: int) -> bool:
        """Return whether another call may be sent while others run, up to ``ahead`` calls in total.

        After a death there is only one: a worker that dies at the next call could take an unreceived reply with it,
        and the client that gave it would be blamed.
        """
        suspected = self.waiting[0].deaths or any(item.deaths for call in self.running for item in call.items)
        return len(self.running) < (1 if suspected else ahead)

    def take(self, count: int, journal: Journal) -> list[Item]:
        """Return the items of the next call; items that follow a death, or must be repeated, go alone."""
        if message := journal.to_repeat(self.waiting[0].client):
            return [Item(message, None)]
        items = [self.waiting.popleft()]
        while self.waiting and len(items) < count and not items[0].deaths:
            if self.waiting[0].deaths or journal.waiting([self.waiting[0].client]):
                break
            items.append(self.waiting.popleft())
        return items

    def put_back(self, *, blame: bool = True) -> list[Item]:
        """Queue again what ran when the worker died; return the items that are not tried again.

        Suspects are the items that the worker had begun. Items that were repeated only for their state are dropped, as
        the journal knows about them.

        Parameters
        ----------
        blame
            Whether a client may have killed the worker.
        """
        suspects = self.running.popleft().items if self.running else []
        for item in suspects:
            item.deaths += blame
        innocent = [item for call in self.running for item in call.items]
        again = [item for item in suspects if item.deaths < 2]
        self.running.clear()
        self.waiting = deque(item for item in [*again, *innocent, *self.waiting] if item.number is not None)
        return [item for item in suspects if item.deaths > 1 or item.number is None]

    def add(self, items: Iterable[Item]) -> None:
        """Queue the items of another worker, in the order in which their replies are needed."""
        self.waiting = deque(sorted([*self.waiting, *items], key=lambda item: item.number or 0))


@dataclass
class _Cost:
    largest_bytes: float = 0.0
    seconds: float = 0.0


class Costs:
    """Number of messages per call, from the cost of the replies so far."""

    def __init__(self) -> None:
        self._costs: dict[str, _Cost] = {}

    def note(self, message: Message, size: float, seconds: float) -> None:
        """Note the bytes and the seconds of the reply to a message."""
        cost = self._costs.setdefault(message.metadata.message_type, _Cost())
        cost.largest_bytes, cost.seconds = max(cost.largest_bytes, size), seconds

    def messages(self, message: Message, cohort: int) -> int:
        """Return the number of messages like this one in a call: whole cohorts, so that no result depends on it."""
        if (cost := self._costs.get(message.metadata.message_type)) is None:
            return cohort
        count = min(CALL_MESSAGES, CALL_BYTES / max(cost.largest_bytes, 1), CALL_SECONDS / max(cost.seconds, 1e-9))
        return cohort * max(1, int(count) // cohort)
