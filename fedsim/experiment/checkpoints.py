"""Checkpoints of a whole run: global model, strategy memory and every client's state after a round.

``checkpoints/round-00012/`` holds the global model, the strategy's memory and, in ``clients.safetensors``, the round
after which each client's file in ``checkpoints/clients/`` was written: a client's state changes only when it takes
part, and one that keeps nothing for itself has no file. Random streams need no state, as each is a function of the
seed, the round and the client. Checkpoints of earlier rounds whose models are kept are in ``checkpoints/kept/``; all
share the files of clients that did not take part between them.
"""

import shutil
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from fedsim.federation.engines.grid import Engine
from fedsim.federation.engines.state_files import StateFiles
from fedsim.models.params import Params, under_all_names, under_first_names
from fedsim.results.files import by_round, write_whole
from fedsim.strategy import Strategy


class Checkpoints:
    """The checkpoints of one run: the newest, from which it resumes, and earlier ones whose models are kept.

    Parameters
    ----------
    folder
        Folder of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept = folder / "kept"
        self._clients = StateFiles(folder / "clients")
        # By round of a checkpoint, and by client: round of its file, 0 without one.
        self._client_rounds: dict[int, np.ndarray] = {}

    def rounds(self) -> list[int]:
        """Return the rounds of all complete checkpoints, in ascending order."""
        return sorted(by_round(self._kept) | by_round(self.folder))

    def newest(self) -> int:
        """Return the round of the newest complete checkpoint, 0 if there is none."""
        return max(self.rounds(), default=0)

    def save(
        self, server_round: int, strategy: Strategy, engine: Engine, changed: Iterable[int], keep: Container[int] = ()
    ) -> None:
        """Save everything after a round, then remove what is no longer needed.

        Parameters
        ----------
        changed
            Clients that took part since the last checkpoint.
        keep
            Earlier rounds whose checkpoints are not removed.
        """
        clients = sorted(changed)
        engine.save_clients(self._clients.folder, clients, server_round)
        client_rounds = self._with(clients, server_round)
        partial = self.folder / f".{_name(server_round)}"
        shutil.rmtree(partial, ignore_errors=True)
        write_whole(partial / "global.safetensors", _contiguous(under_all_names(strategy.model, strategy.global_model)))
        write_whole(partial / "progress.safetensors", _contiguous(strategy.progress()))
        write_whole(partial / "strategy.safetensors", _contiguous(strategy.state()))
        write_whole(partial / "clients.safetensors", _contiguous({"rounds": torch.from_numpy(client_rounds)}))
        partial.replace(self.folder / _name(server_round))
        self._client_rounds[server_round] = client_rounds
        for gone in self._client_rounds.keys() - set(self._tidied(server_round, keep)):
            self._remove_files(self._client_rounds.pop(gone))

    def load(self, server_round: int, strategy: Strategy, engine: Engine, keep: Container[int] = ()) -> None:
        """Restore strategy and clients to where they were after a round, and remove what a kill left.

        Parameters
        ----------
        keep
            Earlier rounds whose checkpoints are not removed.
        """
        self.read(server_round, strategy, engine)
        self._client_rounds = {each: self._read_client_rounds(each) for each in self._tidied(server_round, keep)}
        self._clients.keep(pair for each in self._client_rounds.values() for pair in _files_of(each).items())

    def read(self, server_round: int, strategy: Strategy, engine: Engine) -> None:
        """Restore strategy and clients to where they were after a round; no file is changed."""
        strategy.set_global_model(under_first_names(strategy.model, self.global_model(server_round)))
        strategy.load_progress(load_file(self._round(server_round) / "progress.safetensors"))
        strategy.load_state(load_file(self._round(server_round) / "strategy.safetensors"))
        engine.load_clients(self._clients.folder, _files_of(self._read_client_rounds(server_round)))

    def global_model(self, server_round: int) -> Params:
        """Read the global model after a round; earlier versions wrote a tied tensor under its first name only."""
        return load_file(self._round(server_round) / "global.safetensors")

    def _round(self, server_round: int) -> Path:
        kept = self._kept / _name(server_round)
        return kept if kept.exists() else self.folder / _name(server_round)

    def _tidied(self, newest: int, keep: Container[int]) -> list[int]:
        """Set the checkpoints of earlier rounds aside or remove them; return the rounds of those that are left."""
        left = [newest]
        for earlier in self.rounds():
            if earlier in left:
                continue
            if earlier in keep:
                self._kept.mkdir(exist_ok=True)
                self._round(earlier).replace(self._kept / _name(earlier))
                left.append(earlier)
            else:
                shutil.rmtree(self._round(earlier))
        if left == [newest] and self._kept.exists():
            self._kept.rmdir()
        return left

    def _read_client_rounds(self, server_round: int) -> np.ndarray:
        return load_file(self._round(server_round) / "clients.safetensors")["rounds"].numpy().copy()

    def _with(self, changed: Sequence[int], server_round: int) -> np.ndarray:
        """Return the round of each client's file, after those of some clients have changed."""
        before = self._client_rounds[max(self._client_rounds)] if self._client_rounds else np.zeros(0, dtype=np.int64)
        rounds = np.pad(before, (0, max(0, changed[-1] + 1 - len(before)) if changed else 0))
        for client in changed:
            rounds[client] = server_round if self._clients.has(client, server_round) else 0
        return rounds

    def _remove_files(self, client_rounds: np.ndarray) -> None:
        """Remove the files of clients that a removed checkpoint had and no other has."""
        unused = client_rounds > 0
        for other in self._client_rounds.values():
            n = min(len(client_rounds), len(other))
            unused[:n] &= client_rounds[:n] != other[:n]
        for client in np.flatnonzero(unused):
            self._clients.remove(int(client), int(client_rounds[client]))


def _name(server_round: int) -> str:
    return f"round-{server_round:05d}"


def _files_of(client_rounds: np.ndarray) -> dict[int, int]:
    """Return the round of each client's file, of those that have one."""
    return {int(client): int(client_rounds[client]) for client in np.flatnonzero(client_rounds)}


def _contiguous(params: Params) -> bytes:
    return save({key: value.cpu().contiguous() for key, value in params.items()})
