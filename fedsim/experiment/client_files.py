"""Which file holds the state of each client at a checkpoint."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file, save

from fedsim.federation.engines.state_files import StateFiles
from fedsim.results.seals import Seal, seals_of

HASH_BYTES = 32


@dataclass(frozen=True)
class ClientFiles:
    """The files of the clients' states at a checkpoint.

    Parameters
    ----------
    rounds
        By client: the round after which its file was written; 0 if it has none.
    hashes
        SHA-256 of the files, a row for each client that has one, in the order of the clients; None if an earlier
        version wrote the checkpoint.
    """

    rounds: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    hashes: np.ndarray | None = field(default_factory=lambda: np.zeros((0, HASH_BYTES), dtype=np.uint8))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` has written."""
        held = load_file(path)
        return cls(held["rounds"].numpy().copy(), held["hashes"].numpy().copy() if "hashes" in held else None)

    def encoded(self) -> bytes:
        """Return the content of a file that `read` reads."""
        assert self.hashes is not None
        return save({"rounds": torch.from_numpy(self.rounds), "hashes": torch.from_numpy(self.hashes)})

    @property
    def clients(self) -> np.ndarray:
        """The clients that have a file, in ascending order."""
        return np.flatnonzero(self.rounds)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield each client that has a file, and the round of it."""
        for client in self.clients:
            yield int(client), int(self.rounds[client])

    def of_round(self, server_round: int) -> list[int]:
        """Return the clients whose file was written after this round."""
        return [int(client) for client in np.flatnonzero(self.rounds == server_round)]

    def changed(self, files: StateFiles, clients: Sequence[int], server_round: int) -> Self:
        """Return the files after some clients, in ascending order, wrote theirs."""
        has = [client for client in clients if files.has(client, server_round)]
        written = [files.path(client, server_round) for client in has]
        n = max(len(self.rounds), clients[-1] + 1 if clients else 0)
        rounds = np.pad(self.rounds, (0, n - len(self.rounds)))
        hashes = np.zeros((n, HASH_BYTES), dtype=np.uint8)
        hashes[self.clients] = self._hashes_now(files)
        rounds[list(clients)] = 0
        rounds[has] = server_round
        for client, seal in zip(has, seals_of(written), strict=True):
            hashes[client] = _row(seal)
        return type(self)(rounds, hashes[np.flatnonzero(rounds)])

    def seals(self, files: StateFiles, clients: Collection[int] | None = None) -> dict[Path, Seal]:
        """Return what is known of the files of some clients, or of all."""
        if self.hashes is None:
            return {}
        rows = zip(self.pairs(), self.hashes, strict=True)
        return {
            files.path(client, written): Seal(None, row.tobytes().hex())
            for (client, written), row in rows
            if clients is None or client in clients
        }

    def unused_by(self, others: Iterable["ClientFiles"]) -> Iterator[tuple[int, int]]:
        """Yield the clients and rounds of files that no other checkpoint has."""
        unused = self.rounds > 0
        for other in others:
            n = min(len(self.rounds), len(other.rounds))
            unused[:n] &= self.rounds[:n] != other.rounds[:n]
        for client in np.flatnonzero(unused):
            yield int(client), int(self.rounds[client])

    def _hashes_now(self, files: StateFiles) -> np.ndarray:
        """Return the hashes; those that an earlier version did not write are of the files as they are."""
        if self.hashes is not None:
            return self.hashes
        found = seals_of([files.path(client, written) for client, written in self.pairs()])
        return np.array([_row(seal) for seal in found], dtype=np.uint8).reshape(-1, HASH_BYTES)


def _row(seal: Seal) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(seal.sha256), dtype=np.uint8)
