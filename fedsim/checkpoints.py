"""Checkpoints of a whole run: global model, strategy memory and every client's state after a round.

``checkpoints/round-00012/`` holds the global model, the strategy's memory and, in ``clients.json``, the round
after which each client's file in ``checkpoints/clients/`` was written: a client's state changes only when it takes
part. Random streams need no state, as each is a function of the seed, the round and the client.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save

from fedsim.engines.clients import state_file
from fedsim.engines.grid import Engine
from fedsim.params import Params
from fedsim.records import write_json, write_whole
from fedsim.strategy import Strategy


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run; only the newest is kept.

    Parameters
    ----------
    folder
        Of the checkpoints.
    """

    folder: Path

    def newest(self) -> int:
        """Return the round of the newest complete checkpoint, 0 if there is none."""
        rounds = [int(path.name.removeprefix("round-")) for path in self.folder.glob("round-*")]
        return max(rounds, default=0)

    def save(self, server_round: int, strategy: Strategy, engine: Engine, changed: Iterable[int]) -> None:
        """Save everything after a round; ``changed`` are the clients that took part since the last checkpoint."""
        previous = self.newest()
        clients = self._client_rounds(previous) | dict.fromkeys(changed, server_round)
        engine.save_clients(self._clients, [k for k, saved in clients.items() if saved == server_round], server_round)
        partial = self.folder / f".round-{server_round:05d}"
        shutil.rmtree(partial, ignore_errors=True)
        write_whole(partial / "global.safetensors", _contiguous(strategy.global_model))
        write_whole(partial / "progress.safetensors", _contiguous(strategy.progress()))
        write_whole(partial / "strategy.safetensors", _contiguous(strategy.state()))
        write_json(partial / "clients.json", {str(client): saved for client, saved in sorted(clients.items())})
        partial.replace(self._round(server_round))
        self._prune(server_round, clients)

    def load(self, server_round: int, strategy: Strategy, engine: Engine) -> None:
        """Bring strategy and clients to where they were after a round."""
        strategy.set_global_model(self.global_model(server_round))
        strategy.load_progress(load_file(self._round(server_round) / "progress.safetensors"))
        strategy.load_state(load_file(self._round(server_round) / "strategy.safetensors"))
        engine.load_clients(self._clients, self._client_rounds(server_round))

    def global_model(self, server_round: int) -> Params:
        """Read the global model after a round."""
        return load_file(self._round(server_round) / "global.safetensors")

    @property
    def _clients(self) -> Path:
        return self.folder / "clients"

    def _round(self, server_round: int) -> Path:
        return self.folder / f"round-{server_round:05d}"

    def _client_rounds(self, server_round: int) -> dict[int, int]:
        path = self._round(server_round) / "clients.json"
        return {int(client): saved for client, saved in json.loads(path.read_text()).items()} if server_round else {}

    def _prune(self, server_round: int, clients: Mapping[int, int]) -> None:
        for path in self.folder.glob("round-*"):
            if path != self._round(server_round):
                shutil.rmtree(path)
        current = {state_file(self._clients, client, saved) for client, saved in clients.items()}
        for path in set(self._clients.glob("*")) - current:
            path.unlink()


def _contiguous(params: Params) -> bytes:
    return save({key: value.cpu().contiguous() for key, value in params.items()})
