"""Files of the clients' states, one per client, named by the round after which it was written."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StateFiles:
    """State files in a folder; a client that keeps nothing for itself has none."""

    folder: Path

    def path(self, client: int, server_round: int) -> Path:
        """Return the file of a client's state after a round in which it took part."""
        return self.folder / _name(client, server_round)

    def has(self, client: int, server_round: int) -> bool:
        """Return whether the client left a state in this round; round 0 stands for none."""
        return server_round > 0 and self.path(client, server_round).exists()

    def remove(self, client: int, server_round: int) -> None:
        """Remove the file of a client's state, if there is one."""
        self.path(client, server_round).unlink(missing_ok=True)

    def keep(self, files: Iterable[tuple[int, int]]) -> None:
        """Remove all files except these, each given by its client and its round."""
        kept = {_name(client, server_round) for client, server_round in files}
        # Tools that copy no empty folders leave this one out where no client keeps anything.
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if path.name not in kept:
                path.unlink()


def _name(client: int, server_round: int) -> str:
    return f"{client:06d}-round-{server_round:05d}.safetensors"
