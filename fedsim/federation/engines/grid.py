"""What the engines have in common: Flower's Grid over clients that live in the simulator."""

import logging
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsim.strategy.faults import kind_of
from fedsim.strategy.messages import CLIENT_RAISED

SERVER_NODE = -1
RUN = 1
logger = logging.getLogger(__name__)


def processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_sender() -> None:
    """Let messages of this process come from the server.

    Flower's Message constructor asks for the sender; Flower's own runtimes set it, and so must this Grid.
    """
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, SERVER_NODE, 0


def error_reply(message: Message, reason: str, trace: str = "") -> Message:
    """Return an error in place of a client's reply, with the reason in one line and, for `Engine`, the traceback."""
    return Message(Error(CLIENT_RAISED, "\n".join([" ".join(reason.split()), trace]).strip()), reply_to=message)


def reason_of(reply: Message) -> str:
    """Return the reason of an error, without its traceback."""
    return str(reply.error.reason).partition("\n")[0]


@dataclass(frozen=True)
class Restored:
    """What a client lost when its worker died.

    Parameters
    ----------
    server_round
        Round of the state that the client was set back to, 0 for its initial one.
    reason
        Why the worker died, or why the client could not repeat what it had done since.
    """

    server_round: int
    reason: str


class Engine(Grid):
    """A Grid whose nodes are the clients: node ``k`` is client ``k``.

    As a context manager, it ends its workers with the run.

    Parameters
    ----------
    clients
        Number of clients.
    workers
        Number of threads or actors; 0 for one per processor that this process may use.
    deadline
        Seconds that a client has for its reply once a worker has begun with it; unlimited if not given.
    """

    def __init__(self, clients: int, workers: int, deadline: float | None = None) -> None:
        self.clients = clients
        self.workers = workers or processors()
        self.deadline = deadline
        self._run = Run.create_empty(RUN)
        self._replies: dict[str, Message] = {}
        self._logged: set[str] = set()
        set_sender()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take_restored(self) -> dict[int, Restored]:
        """Return the clients whose worker died, and that were set back to an earlier state, since the last call."""
        return {}

    @abstractmethod
    def handle(self, messages: list[Message]) -> Iterator[Message]:
        """Let each message's client answer it, and yield the replies in the order of the messages.

        A client that raises, gives no reply or takes longer than the deadline answers with an error.
        """

    @abstractmethod
    def save_clients(self, folder: Path, clients: Iterable[int], server_round: int) -> None:
        """Write the state of these clients into ``folder``; a client without a state has no file.

        `fedsim.federation.engines.state_files.StateFiles` names the files.
        """

    @abstractmethod
    def load_clients(self, folder: Path, rounds: Mapping[int, int]) -> None:
        """Read the state of each client as it was saved after the round given for it, when it is first needed."""

    def close(self) -> None:
        """End the workers."""

    def overdue(self, message: Message) -> Message:
        """Return the reply of a client that took longer than the deadline."""
        return error_reply(message, f"it timed out after {self.deadline:g} s")

    # Flower's Grid.

    def set_run(self, run: Run) -> None:
        """Set the run that this grid works for."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that this grid works for."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message; Flower recommends its constructor instead."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the clients."""
        return range(self.clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the messages' clients, and return the ids by which `pull_messages` gives their replies."""
        pushed = list(messages)
        self._replies |= {reply.metadata.reply_to_message_id: reply for reply in self.send_and_receive(pushed)}
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages, each once."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run the messages' clients and yield their replies in the order of the messages.

        The engine keeps no reply that it has yielded, so the caller can free it. The timeout is ignored; ``deadline``
        limits the clients.
        """
        sent = list(messages)
        for message in sent:
            message.metadata.__dict__["_message_id"] = str(uuid4())
        return map(self._without_trace, self.handle(sent), sent)

    def _without_trace(self, reply: Message, message: Message) -> Message:
        """Return a reply without its traceback, which is logged once for each kind of error."""
        if not reply.has_error() or "\n" not in (text := str(reply.error.reason)):
            return reply
        reason, _, trace = text.partition("\n")
        if (kind := kind_of(reason)) not in self._logged:
            self._logged.add(kind)
            metadata = message.metadata
            where = metadata.group_id, metadata.dst_node_id, metadata.message_type
            logger.info("round %s: client %d failed in %s: %s\n%s", *where, reason, trace)
        return error_reply(message, reason)
