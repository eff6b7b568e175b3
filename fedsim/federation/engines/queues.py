"""What one worker is to do: the messages that wait for it, and the calls that it is working on."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message

from fedsim.federation.engines.journal import Journal

# A call is as long as is worth its cost of about a millisecond, and short enough for replies to flow.
CALL_MESSAGES, CALL_BYTES, CALL_SECONDS = 64, 2**25, 1.0


@dataclass(eq=False)
class Item:
    """A message to answer.

    Parameters
    ----------
    number
        Under which its reply is waited for; None if it was answered before, by a worker that died, and only the state
        that it leaves behind is wanted.
    deaths
        How often a worker died when it was its turn.
    """

    message: Message
    number: int | None
    deaths: int = 0

    @property
    def client(self) -> int:
        """The client that is to answer."""
        return self.message.metadata.dst_node_id


@dataclass(eq=False)
class Call:
    """Items that were sent together, none for a call that is no question, and what will be their result."""

    result: Any
    items: list[Item]


@dataclass(eq=False)
class Queue:
    """What waits for one worker and what runs there, each in order."""

    waiting: deque[Item] = field(default_factory=deque)
    running: deque[Call] = field(default_factory=deque)

    def has_room(self, ahead: int) -> bool:
        """Tell whether the next call may be sent before the results of those that run are there, up to ``ahead``.

        After a death none is: a worker that dies at the next call may take an answer with it that is not received yet,
        and the one who gave it would be blamed.
        """
        suspected = self.waiting[0].deaths or any(item.deaths for call in self.running for item in call.items)
        return len(self.running) < (1 if suspected else ahead)

    def take(self, count: int, journal: Journal) -> list[Item]:
        """Return the items of the next call; those that come after a death, and what they need first, go alone."""
        if message := journal.to_repeat(self.waiting[0].client):
            return [Item(message, None)]
        items = [self.waiting.popleft()]
        while self.waiting and len(items) < count and not items[0].deaths:
            if self.waiting[0].deaths or journal.waiting([self.waiting[0].client]):
                break
            items.append(self.waiting.popleft())
        return items

    def put_back(self) -> list[Item]:
        """Let everything wait again that ran when the worker died; return what is not to be tried any more.

        The suspects are those that the worker had begun with. What it answered only for the state is dropped, as the
        journal knows about it.
        """
        suspects = self.running.popleft().items if self.running else []
        for item in suspects:
            item.deaths += 1
        innocent = [item for call in self.running for item in call.items]
        again = [item for item in suspects if item.deaths < 2]
        self.running.clear()
        self.waiting = deque(item for item in [*again, *innocent, *self.waiting] if item.number is not None)
        return [item for item in suspects if item.deaths > 1 or item.number is None]

    def add(self, items: deque[Item]) -> None:
        """Let the items of another queue wait here, in the order in which their replies are needed."""
        self.waiting = deque(sorted([*self.waiting, *items], key=lambda item: item.number or 0))


@dataclass
class _Cost:
    largest_bytes: float = 0.0
    seconds: float = 0.0


class Costs:
    """How many messages go in one call, from what their replies have cost so far."""

    def __init__(self) -> None:
        self._costs: dict[str, _Cost] = {}

    def note(self, message: Message, size: float, seconds: float) -> None:
        """Note the bytes and the seconds of the reply to a message."""
        cost = self._costs.setdefault(message.metadata.message_type, _Cost())
        cost.largest_bytes, cost.seconds = max(cost.largest_bytes, size), seconds

    def messages(self, message: Message, cohort: int) -> int:
        """Return how many messages like this one go in a call: whole cohorts, so that no number depends on it."""
        if (cost := self._costs.get(message.metadata.message_type)) is None:
            return cohort
        count = min(CALL_MESSAGES, CALL_BYTES / max(cost.largest_bytes, 1), CALL_SECONDS / max(cost.seconds, 1e-9))
        return cohort * max(1, int(count) // cohort)
