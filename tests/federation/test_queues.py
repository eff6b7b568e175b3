from collections import deque

import pytest
from flwr.app import Message, MessageType, RecordDict

from fedsim.federation.engines.grid import set_sender
from fedsim.federation.engines.queues import Call, Item, Queue


@pytest.fixture(autouse=True)
def _sender() -> None:
    set_sender()


def test_after_a_death_no_call_is_sent_before_the_result_of_another() -> None:
    def queue(waiting: int, running: int) -> Queue:
        """Return a queue of two messages that have died so often with their worker."""
        first, second = (Item(Message(RecordDict(), 0, MessageType.TRAIN), 0, deaths) for deaths in (running, waiting))
        return Queue(deque([second]), deque([Call(None, [first])]))

    assert queue(0, 0).has_room(2)
    assert not queue(0, 0).has_room(1)
    assert not queue(1, 0).has_room(2)
    assert not queue(0, 1).has_room(2)
    assert Queue(deque([Item(Message(RecordDict(), 0, MessageType.TRAIN), 0, 1)])).has_room(2)
