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
from fedsim.strategy.client_rounds import decoded, encoded

HASH_BYTES = 32
# Earlier versions wrote such a file for each client that took part and kept nothing.
EMPTY = np.frombuffer(bytes.fromhex(Seal.of(save({})).sha256), dtype=np.uint8)


@dataclass(frozen=True)
class ClientFiles:
    """The files of the clients' states at a checkpoint: nothing depends on the number of clients that have none.

    Parameters
    ----------
    clients
        Clients that have a file, in ascending order.
    rounds
        The round after which each of these files was written.
    hashes
        Their SHA-256, a row for each; None if an earlier version wrote the checkpoint.
    """

    clients: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    rounds: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    hashes: np.ndarray | None = field(default_factory=lambda: np.zeros((0, HASH_BYTES), dtype=np.uint8))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `encoded` returned; files that hold nothing are left out."""
        held = load_file(path)
        clients, rounds = (each.numpy().copy() for each in decoded("rounds", held))
        if "hashes" not in held:
            return cls(clients, rounds, None)
        hashes = held["hashes"].numpy().copy()
        holds = (hashes != EMPTY).any(1)
        return cls(clients[holds], rounds[holds], hashes[holds])

    def encoded(self) -> bytes:
        """Return the content of a file that `read` reads."""
        assert self.hashes is not None
        rounds = encoded("rounds", torch.from_numpy(self.clients), torch.from_numpy(self.rounds))
        return save(rounds | {"hashes": torch.from_numpy(self.hashes)})

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield each client that has a file, and the round of it."""
        yield from zip(self.clients.tolist(), self.rounds.tolist(), strict=True)

    def of_round(self, server_round: int) -> list[int]:
        """Return the clients whose file was written after this round."""
        found: list[int] = self.clients[self.rounds == server_round].tolist()
        return found

    def changed(self, files: StateFiles, clients: Sequence[int], server_round: int) -> Self:
        """Return the files after some clients, in ascending order, wrote theirs."""
        has = np.array([client for client in clients if files.has(client, server_round)], dtype=np.int64)
        found = seals_of([files.path(client, server_round) for client in has.tolist()])
        stay = ~np.isin(self.clients, clients)
        every = np.concatenate([self.clients[stay], has])
        rounds = np.concatenate([self.rounds[stay], np.full(len(has), server_round)])
        hashes = np.concatenate([self._hashes_now(files)[stay], _rows(found)])
        order = np.argsort(every, kind="stable")
        return type(self)(every[order], rounds[order], hashes[order])

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
        unused = np.ones(len(self.clients), dtype=bool)
        for other in others:
            place = np.searchsorted(other.clients, self.clients)
            known = place < len(other.clients)
            known[known] = other.clients[place[known]] == self.clients[known]
            unused[known] &= other.rounds[place[known]] != self.rounds[known]
        yield from zip(self.clients[unused].tolist(), self.rounds[unused].tolist(), strict=True)

    def _hashes_now(self, files: StateFiles) -> np.ndarray:
        """Return the hashes; those that an earlier version did not write are of the files as they are."""
        if self.hashes is not None:
            return self.hashes
        return _rows(seals_of([files.path(client, written) for client, written in self.pairs()]))


def _rows(seals: Sequence[Seal]) -> np.ndarray:
    """Return the hashes of files, a row for each."""
    content = b"".join(bytes.fromhex(seal.sha256) for seal in seals)
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, HASH_BYTES)
