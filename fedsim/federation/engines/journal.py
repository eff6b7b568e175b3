"""Which state of each client is on disk, and how to restore it when the worker that held it dies."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.app import Message, MessageType

from fedsim.federation.engines.state_files import StateFiles


class Journal:
    """Remembers, for each client, its last checkpoint and the message that has changed its state since.

    A message is kept only until the next training begins, as it holds the model of its round. So a client that has
    trained once since its checkpoint can be restored to where it was; one that has trained more often cannot.
    Evaluation is assumed to leave a client's state unchanged.
    """

    def __init__(self) -> None:
        self._saved: dict[int, tuple[Path, int]] = {}
        self._empty: set[int] = set()  # clients that kept nothing at their last checkpoint
        self._changed: dict[int, Message | None] = {}
        self._again: dict[int, Message] = {}

    def begin(self, messages: Iterable[Message]) -> bool:
        """Note that these messages are about to be sent; return whether one of them trains."""
        if trains := any(_changes_state(message) for message in messages):
            self._changed = {client: self._again.get(client) for client in self._changed}
        return trains

    def answered(self, message: Message) -> None:
        """Note that a client has answered a message without an error."""
        if _changes_state(message):
            client = message.metadata.dst_node_id
            self._changed[client] = None if client in self._changed else message

    def saved(self, folder: Path, rounds: Mapping[int, int]) -> None:
        """Note that the state of each of these clients is the one that ``folder`` has for its round, if any."""
        files = StateFiles(folder)
        self._empty -= rounds.keys()
        self._empty |= {client for client, server_round in rounds.items() if not files.has(client, server_round)}
        for client, server_round in rounds.items():
            self._saved[client] = folder, server_round
            self._changed.pop(client, None)
            self._again.pop(client, None)

    def known(self) -> set[int]:
        """Return the clients that may have a state."""
        return self._saved.keys() | self._changed.keys()

    def set_back(self, clients: Iterable[int]) -> tuple[dict[Path, dict[int, int]], dict[int, int]]:
        """Note that the worker of these clients is dead.

        Returns
        -------
        files
            Round of each client's file to read, by folder.
        restored
            Round of the state that each client now has, 0 for its initial one, except clients that can answer their
            last message again.
        """
        files: dict[Path, dict[int, int]] = {}
        restored: dict[int, int] = {}
        for client in sorted(self.known() & set(clients)):
            if (file := self._file(client)) is not None:
                files.setdefault(file[0], {})[client] = file[1]
            if (message := self._changed.get(client)) is not None:
                self._again[client] = message
            else:
                restored |= self.give_up(client)
        return files, restored

    def unchanged_file(self, client: int) -> Path | None:
        """Return the file that holds a client's current state, if it has not changed since its last checkpoint."""
        file = None if client in self._changed else self._file(client)
        return StateFiles(file[0]).path(client, file[1]) if file else None

    def waiting(self, clients: Iterable[int]) -> list[Message]:
        """Return the messages that these clients must answer again before anything else."""
        return [self._again[client] for client in clients if client in self._again]

    def to_repeat(self, client: int) -> Message | None:
        """Return the message that the client must answer again, if any, and forget it."""
        return self._again.pop(client, None)

    def give_up(self, client: int) -> dict[int, int]:
        """Note that a client stays at its last checkpoint; return the client with the round of that."""
        self._changed.pop(client, None)
        self._again.pop(client, None)
        file = self._saved[client] if client in self._empty else self._file(client)
        return {client: file[1] if file else 0}

    def _file(self, client: int) -> tuple[Path, int] | None:
        folder, server_round = self._saved.get(client, (Path(), 0))
        return (folder, server_round) if StateFiles(folder).has(client, server_round) else None


def _changes_state(message: Message) -> bool:
    return message.metadata.message_type.split(".")[0] != MessageType.EVALUATE


def describe(restored: Mapping[int, int]) -> str:
    """Return in words which clients are back at which state."""
    by_round: dict[int, list[int]] = {}
    for client, server_round in sorted(restored.items()):
        by_round.setdefault(server_round, []).append(client)
    return "; ".join(
        f"clients {', '.join(map(str, clients[:10]))}{', ...' if len(clients) > 10 else ''} are back at their "
        + (f"state after round {server_round}" if server_round else "initial state")
        for server_round, clients in by_round.items()
    )
