"""States of the clients between messages: recently used ones in memory, the others on disk."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from safetensors import safe_open
from safetensors.torch import load, load_file, save

from fedsim.errors import about_file
from fedsim.federation.engines.scratch import Scratch
from fedsim.federation.engines.state_files import StateFiles
from fedsim.memory import TENSOR_BYTES
from fedsim.models.params import Params, flatten, unflatten
from fedsim.results.files import write_whole
from fedsim.strategy import messages

Encoded = Path | np.ndarray | bytes  # a state as it is saved: in a file, or its bytes


def files_of(folder: Path, rounds: Mapping[int, int]) -> dict[int, Path]:
    """Return the file of each client's state after the round given for it.

    Raises
    ------
    OSError, safetensors.SafetensorError
        If one is missing or damaged.
    """
    files = {client: StateFiles(folder).path(client, server_round) for client, server_round in rounds.items()}
    for path in files.values():
        with safe_open(path, "np"):
            pass
    return files


class States:
    """The states of the clients, in bounded memory.

    Only parameters (array records) can be moved to disk. A state that holds anything else stays in memory.

    Parameters
    ----------
    cache_bytes
        Size of the states that are held in memory, the most recently used ones; the newest is held whatever its size.

    Attributes
    ----------
    held_bytes
        Size of the states that are held in memory now.
    """

    def __init__(self, cache_bytes: int) -> None:
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[int, RecordDict] = OrderedDict()
        self.held_bytes = 0
        # Files of the clients whose state has not changed since it was written, as text, which is smaller than a Path.
        self._files: dict[int, str] = {}
        self._spill: Scratch | None = None
        self._lock = threading.RLock()

    @property
    def held(self) -> list[int]:
        """Clients whose states are in memory, the most recently used last."""
        return list(self._cached)

    def file_of(self, client: int) -> Path | None:
        """Return the file that holds a client's current state, if there is one."""
        return Path(self._files[client]) if client in self._files else None

    def __getitem__(self, client: int) -> RecordDict:
        """Return a client's state, empty if it has none; its records may be replaced without changing what is held."""
        with self._lock:
            if client in self._cached:
                self._cached.move_to_end(client)
            elif client in self._files:
                self._hold(client, _read(Path(self._files[client])))
            else:
                return RecordDict()
            return RecordDict({name: _copy(record) for name, record in self._cached[client].items()})

    def __setitem__(self, client: int, state: RecordDict) -> None:
        with self._lock:
            if client in self._cached and _same(self._cached[client], state):
                return
            self.discard(client)
            if any(state.values()):  # records without values are nothing to keep
                self._hold(client, state)

    def discard(self, client: int) -> None:
        """Forget a client's state."""
        with self._lock:
            self._files.pop(client, None)
            if (old := self._cached.pop(client, None)) is not None:
                self.held_bytes -= _size(old)

    def save(self, folder: Path, clients: Iterable[int], server_round: int) -> None:
        """Write each client's state to its file; a client without a state has none."""
        files = StateFiles(folder)
        for client in clients:
            with self._lock:
                if (content := self.encoded(client)) is not None:
                    target = files.path(client, server_round)
                    write_whole(target, content)
                    self._files[client] = str(target)

    def load(self, folder: Path, rounds: Mapping[int, int]) -> None:
        """Replace each client's state by the file of the round given for it.

        Raises
        ------
        OSError, safetensors.SafetensorError
            If a file is missing or damaged. Its content is read when the client next takes part.
        """
        for client, path in files_of(folder, rounds).items():
            self.replace(client, path)

    def replace(self, client: int, state: Encoded) -> None:
        """Replace a client's state by one that was saved: the content of its file, or the path of a file that stays."""
        if isinstance(state, Path):
            with self._lock:
                self.discard(client)
                self._files[client] = str(state)
        else:
            self[client] = _decoded(load(bytes(state)))

    def encoded(self, client: int) -> bytes | None:
        """Return the content of a client's file; None if it has no state."""
        with self._lock:
            if client in self._cached:
                return _encoded(self._cached[client])
            return Path(self._files[client]).read_bytes() if client in self._files else None

    def _hold(self, client: int, state: RecordDict) -> None:
        """Hold a state in memory, and move the least recently used ones to disk if there are too many."""
        self._cached[client] = state
        self.held_bytes += _size(state)
        excess, leaving = self.held_bytes - self._cache_bytes, []
        for oldest, held in self._cached.items():
            if excess <= 0 or oldest == client:
                break
            if all(isinstance(record, ArrayRecord) for record in held.values()):
                leaving.append(oldest)
                excess -= _size(held)
        for oldest in leaving:
            if oldest not in self._files:
                self._spill = self._spill or Scratch("states")
                path = self._spill.path / f"{oldest}.safetensors"
                with about_file(path):
                    path.write_bytes(_encoded(self._cached[oldest]))
                self._files[oldest] = str(path)
            self.held_bytes -= _size(self._cached.pop(oldest))


def _size(state: RecordDict) -> int:
    records = [record for record in state.values() if isinstance(record, ArrayRecord)]
    return sum(messages.size_bytes(array) + TENSOR_BYTES for record in records for array in record.values())


def _same(one: RecordDict, other: RecordDict) -> bool:
    """Return whether two states hold identical arrays and equal values."""
    return one.keys() == other.keys() and all(
        record.keys() == other[name].keys()
        and all(
            value is other[name][key] or (not isinstance(value, Array) and value == other[name][key])
            for key, value in record.items()
        )
        for name, record in one.items()
    )


def _copy(record: Any) -> Any:
    """Return a copy that can be changed without changing the record."""
    copied = type(record)()
    for key, value in record.items():
        copied[key] = value
    return copied


def _encoded(state: RecordDict) -> bytes:
    held = flatten({name: messages.decode(messages.arrays_of(state, name)) for name in state})
    return save({path: value.cpu().contiguous() for path, value in held.items()})


def _read(path: Path) -> RecordDict:
    return _decoded(load_file(path))


def _decoded(held: Params) -> RecordDict:
    return RecordDict({name: messages.encode(params) for name, params in unflatten(held, levels=1).items()})
