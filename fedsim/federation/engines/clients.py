"""The clients of one worker: their replies to messages, and the states that they leave."""

import logging
import threading
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim.config import EngineConfig
from fedsim.errors import ClientError
from fedsim.federation.client.app import CohortApp
from fedsim.federation.client.reasons import is_expected, reason_of
from fedsim.federation.engines.grid import RUN, error_reply
from fedsim.federation.engines.states import Encoded, States
from fedsim.shortening import a_type

CACHE_BYTES = EngineConfig().cache_bytes
logger = logging.getLogger(__name__)


class Stopped(BaseException):
    """Raised in the code of clients that ran out of time, and by nothing else."""


class Clients:
    """Answers messages with the clients' app, each client with the state that it left after its last message.

    A client that fails keeps the state that it had, as if the message had never come.

    Parameters
    ----------
    count
        Number of clients of the run; this worker may see only some of them.
    cache_bytes
        Size of the states that are held in memory; the others are on disk.
    """

    def __init__(self, app: ClientApp, count: int, cache_bytes: int = CACHE_BYTES) -> None:
        self._app = app
        self._count = count
        self._states = States(cache_bytes)
        self._abandoned: dict[int, int] = {}
        self._lock = threading.Lock()
        self._has_warned = False

    @property
    def cohort(self) -> int:
        """Number of clients that the app answers for at a time."""
        return self._app.cohort if isinstance(self._app, CohortApp) else 1

    def answer(self, message: Message) -> Message:
        """Return the client's reply; if it raises or returns nothing, an error reply with the reason.

        Raises
        ------
        OSError
            If a state cannot be read or written: that is no failure of a client's, which the run could do without.
        """
        client = message.metadata.dst_node_id
        abandoned, context = self._abandoned.get(client, 0), self.context_of(client)
        try:
            reply = _checked(self._app(message, context))
        except Stopped:
            raise
        except BaseException as error:  # the caller decides what it means for the run, also of an exit
            return error_reply(message, reason_of(error), "" if is_expected(error) else traceback.format_exc())
        self._keep(client, reply, context, abandoned)
        return reply

    def answer_all(self, messages: list[Message]) -> list[Message]:
        """Return the replies to messages, in order; the app answers for as many clients at a time as it can."""
        replies: list[Message] = []
        for start in range(0, len(messages), self.cohort):
            replies += self._answer_cohort(messages[start : start + self.cohort])
        return replies

    def context_of(self, client: int) -> Context:
        """Return what a client's app gets with a message: its number, and a copy of its state."""
        return Context(
            run_id=RUN,
            node_id=client,
            node_config={"partition-id": client, "num-partitions": self._count},
            state=self._states[client],
            run_config={},
        )

    def abandon(self, client: int) -> None:
        """Discard the state that a client will leave after what it is doing now."""
        with self._lock:
            self._abandoned[client] = self._abandoned.get(client, 0) + 1

    def save(self, folder: Path, clients: Iterable[int], server_round: int) -> None:
        """Write the state of each client that has one to a file."""
        self._states.save(folder, clients, server_round)

    def load(self, folder: Path, rounds: Mapping[int, int]) -> None:
        """Load each client's state after the round given for it."""
        self._states.load(folder, rounds)

    def replace(self, states: Mapping[int, Encoded]) -> None:
        """Replace the state of each client by one that was saved."""
        for client, state in states.items():
            self._states.replace(client, state)

    def encoded(self, clients: Iterable[int]) -> dict[int, bytes]:
        """Return the states of those clients that have one, as they are saved."""
        found = ((client, self._states.encoded(client)) for client in clients)
        return {client: state for client, state in found if state is not None}

    def discard(self, clients: Iterable[int]) -> None:
        """Forget the states of clients that are somewhere else now."""
        for client in clients:
            self._states.discard(client)

    def _answer_cohort(self, messages: list[Message]) -> list[Message]:
        if len(messages) == 1 or not isinstance(self._app, CohortApp):
            return [self.answer(message) for message in messages]
        clients = [message.metadata.dst_node_id for message in messages]
        abandoned = [self._abandoned.get(client, 0) for client in clients]
        contexts = [self.context_of(client) for client in clients]
        try:
            replies = [*map(_checked, self._app.together(list(zip(messages, contexts, strict=True))))]
        except Stopped:
            raise
        except BaseException as error:
            reason = reason_of(error)
            logger.info("clients %s failed as a cohort; each is tried alone: %s", clients, reason)
            replies, contexts = [], []
        if not replies:  # what the error kept in memory is free by now
            replies = [self.answer(message) for message in messages]
            if not (self._has_warned or any(reply.has_error() for reply in replies)):
                self._has_warned = True
                logger.warning("clients fail together but not alone (%s); engine.cohort = 1 saves the attempts", reason)
            return replies
        for client, reply, context, before in zip(clients, replies, contexts, abandoned, strict=True):
            self._keep(client, reply, context, before)
        return replies

    def _keep(self, client: int, reply: Message, context: Context, abandoned: int) -> None:
        with self._lock:
            if self._abandoned.get(client, 0) == abandoned and not reply.has_error():
                self._states[client] = context.state


def _checked(reply: Message) -> Message:
    if not isinstance(reply, Message):
        raise ClientError(f"the client returned {a_type(reply)}; it must return a Message")
    return reply
