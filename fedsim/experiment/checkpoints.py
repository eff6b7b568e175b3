"""Checkpoints of a whole run: global model, strategy memory and every client's state after a round.

``checkpoints/round-00012/`` holds the global model, the strategy's memory and, in ``clients.safetensors``, the round
after which each client's file in ``checkpoints/clients/`` was written: a client's state changes only when it takes
part, and one that keeps nothing for itself has no file. Random streams need no state, as each is a function of the
seed, the round and the client.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from fedsim.federation.engines.grid import Engine
from fedsim.federation.engines.state_files import StateFiles
from fedsim.models.params import Params
from fedsim.results.files import write_whole
from fedsim.strategy import Strategy


class Checkpoints:
    """The checkpoints of one run; only the newest is kept.

    Parameters
    ----------
    folder
        Folder of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clients = StateFiles(folder / "clients")
        # By client: round of its file, 0 without one.
        self._client_rounds = np.zeros(0, dtype=np.int64)

    def newest(self) -> int:
        """Return the round of the newest complete checkpoint, 0 if there is none."""
        rounds = [int(path.name.removeprefix("round-")) for path in self.folder.glob("round-*")]
        return max(rounds, default=0)

    def save(self, server_round: int, strategy: Strategy, engine: Engine, changed: Iterable[int]) -> None:
        """Save everything after a round; ``changed`` are the clients that took part since the last checkpoint."""
        clients = sorted(changed)
        engine.save_clients(self._clients.folder, clients, server_round)
        before, self._client_rounds = self._client_rounds, self._with(clients, server_round)
        partial = self.folder / f".round-{server_round:05d}"
        shutil.rmtree(partial, ignore_errors=True)
        write_whole(partial / "global.safetensors", _contiguous(strategy.global_model))
        write_whole(partial / "progress.safetensors", _contiguous(strategy.progress()))
        write_whole(partial / "strategy.safetensors", _contiguous(strategy.state()))
        write_whole(partial / "clients.safetensors", _contiguous({"rounds": torch.from_numpy(self._client_rounds)}))
        partial.replace(self._round(server_round))
        self._remove_older(server_round)
        for client in clients:  # whose earlier files are no longer needed
            if client < len(before) and before[client] not in (0, server_round):
                self._clients.remove(client, before[client])

    def load(self, server_round: int, strategy: Strategy, engine: Engine) -> None:
        """Restore strategy and clients to where they were after a round, and remove what a kill left."""
        self.read(server_round, strategy, engine)
        self._remove_older(server_round)
        self._clients.keep(self._saved_clients())

    def read(self, server_round: int, strategy: Strategy, engine: Engine) -> None:
        """Restore strategy and clients to where they were after a round; no file is changed."""
        strategy.set_global_model(self.global_model(server_round))
        strategy.load_progress(load_file(self._round(server_round) / "progress.safetensors"))
        strategy.load_state(load_file(self._round(server_round) / "strategy.safetensors"))
        self._client_rounds = load_file(self._round(server_round) / "clients.safetensors")["rounds"].numpy().copy()
        engine.load_clients(self._clients.folder, self._saved_clients())

    def _saved_clients(self) -> dict[int, int]:
        """Return the round of each client's file, of those that have one."""
        return {int(client): int(self._client_rounds[client]) for client in np.flatnonzero(self._client_rounds)}

    def global_model(self, server_round: int) -> Params:
        """Read the global model after a round."""
        return load_file(self._round(server_round) / "global.safetensors")

    def _round(self, server_round: int) -> Path:
        return self.folder / f"round-{server_round:05d}"

    def _with(self, changed: Sequence[int], server_round: int) -> np.ndarray:
        """Return the round of each client's file, after those of some clients have changed."""
        rounds = np.pad(self._client_rounds, (0, max(0, changed[-1] + 1 - len(self._client_rounds)) if changed else 0))
        for client in changed:
            rounds[client] = server_round if self._clients.has(client, server_round) else 0
        return rounds

    def _remove_older(self, server_round: int) -> None:
        for path in self.folder.glob("round-*"):
            if path != self._round(server_round):
                shutil.rmtree(path)


def _contiguous(params: Params) -> bytes:
    return save({key: value.cpu().contiguous() for key, value in params.items()})
