"""The clients of one worker: their state between messages, and how it is saved."""

import logging
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import load_file, save

from fedsim import messages
from fedsim.records import write_whole

CLIENT_RAISED = 2  # Flower's code for an exception in the ClientApp
logger = logging.getLogger(__name__)


def state_file(folder: Path, client: int, server_round: int) -> Path:
    """Return the file of a client's state after a round in which it took part."""
    return folder / f"{client:06d}-round-{server_round:05d}.safetensors"


class Clients:
    """Answers messages with the clients' app, each client with the state that it left behind.

    Parameters
    ----------
    count
        Number of all clients of the run, of which this worker may see only some.
    """

    def __init__(self, app: ClientApp, count: int, run_id: int) -> None:
        self._app = app
        self._count = count
        self._run_id = run_id
        self._contexts: dict[int, Context] = {}
        self._lock = threading.Lock()

    def answer(self, message: Message) -> Message:
        """Return the client's reply; if it raises, an error reply with the reason."""
        client = message.metadata.dst_node_id
        try:
            return self._app(message, self._context(client))
        except Exception as error:
            # The traceback is for the log; who waits for the reply says what it means for the run.
            logger.info("client %d failed in %s", client, message.metadata.message_type, exc_info=True)
            reason = " ".join(str(error).split())
            return Message(Error(CLIENT_RAISED, f"{type(error).__name__}: {reason}"), reply_to=message)

    def save(self, folder: Path, clients: Iterable[int], server_round: int) -> None:
        """Write the state of each client to its own file."""
        for client in clients:
            records = self._context(client).state.array_records
            state = {
                f"{name}/{key}": value
                for name, record in records.items()
                for key, value in messages.decode(record).items()
            }
            write_whole(state_file(folder, client, server_round), save(state))

    def load(self, folder: Path, rounds: Mapping[int, int]) -> None:
        """Read each client's state as of the round given for it."""
        for client, server_round in rounds.items():
            records: dict[str, dict] = {}
            for name, value in load_file(state_file(folder, client, server_round)).items():
                record, _, key = name.partition("/")
                records.setdefault(record, {})[key] = value
            state = self._context(client).state
            for record, params in records.items():
                state[record] = messages.encode(params)

    def _context(self, client: int) -> Context:
        with self._lock:
            if client not in self._contexts:
                self._contexts[client] = Context(
                    run_id=self._run_id,
                    node_id=client,
                    node_config={"partition-id": client, "num-partitions": self._count},
                    state=RecordDict(),
                    run_config={},
                )
            return self._contexts[client]
