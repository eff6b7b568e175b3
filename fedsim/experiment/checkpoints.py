"""Checkpoints of a whole run: global model, strategy memory and every client's state after a round.

``checkpoints/round-00012/`` holds the global model, the strategy's memory and, in ``clients.safetensors``, the round
after which each client's file in ``checkpoints/clients/`` was written, and its hash: a client's state changes only when
it takes part, and one that keeps nothing for itself has no file. Random streams need no state, as each is a function of
the seed, the round and the client. ``manifest.json``, written last, seals the other files. The checkpoint before the
newest, and those of earlier rounds whose models are kept, are in ``checkpoints/kept/``; all share the files of clients
that did not take part between them.
"""

import shutil
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fedsim.errors import RunError
from fedsim.experiment.client_files import ClientFiles
from fedsim.federation.engines.grid import Engine
from fedsim.federation.engines.state_files import StateFiles
from fedsim.models.params import Params, under_all_names, under_first_names
from fedsim.results.disk import sync
from fedsim.results.files import by_round
from fedsim.results.folder import RunFolder
from fedsim.results.integrity import OF_MANIFEST, sealed_from
from fedsim.results.seals import DamagedError, Seal, check_all, place_in, read_sealed, sealed, write_sealed
from fedsim.strategy import Strategy

MANIFEST = "manifest.json"
# What reading a checkpoint raises if it is damaged.
UNREADABLE = (OSError, ValueError, KeyError, SafetensorError)
CLIENTS, PROGRESS = "clients.safetensors", "progress.safetensors"


class Checkpoints:
    """The checkpoints of one run: the newest, from which it resumes, the one before, and others whose models are kept.

    Parameters
    ----------
    folder
        Folder of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept = folder / "kept"
        self._clients = StateFiles(folder / "clients")
        self._client_files: dict[int, ClientFiles] = {}  # by round of a checkpoint

    def rounds(self) -> list[int]:
        """Return the rounds of all complete checkpoints, in ascending order."""
        return sorted(by_round(self._kept) | by_round(self.folder))

    def newest(self) -> int:
        """Return the round of the newest complete checkpoint, 0 if there is none."""
        return max(self.rounds(), default=0)

    def save(
        self,
        server_round: int,
        strategy: Strategy,
        engine: Engine,
        changed: Iterable[int],
        keep: Container[int] = (),
        records: Mapping[str, Any] | None = None,
        *,
        passing: Container[int] = (),
    ) -> None:
        """Save everything after a round, then remove what is no longer needed.

        Parameters
        ----------
        changed
            Clients that took part since the last checkpoint.
        keep
            Earlier rounds whose checkpoints are not removed.
        records
            What its manifest seals besides its own files.
        passing
            Earlier rounds whose checkpoints are removed.

        Raises
        ------
        RunError
            If the last checkpoint was removed since it was written.
        """
        if self._client_files and not self._round(max(self._client_files)).exists():
            raise RunError(f"{self.folder} was removed or changed under the run that writes it; run it again")
        clients = sorted(changed)
        for path in (self.folder, self._clients.folder):
            path.mkdir(exist_ok=True)
        engine.save_clients(self._clients.folder, clients, server_round)
        before = self._client_files[max(self._client_files)] if self._client_files else ClientFiles()
        client_files = before.changed(self._clients, clients, server_round)
        contents = {
            "global.safetensors": _contiguous(under_all_names(strategy.model, strategy.global_model)),
            PROGRESS: _contiguous(strategy.exchange.progress()),
            "strategy.safetensors": _contiguous(strategy.state()),
            CLIENTS: client_files.encoded(),
        }
        partial = self.folder / f".{_name(server_round)}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        seals = {name: Seal.of(content).to_json() for name, content in contents.items()}
        (partial / MANIFEST).write_text(sealed({"round": server_round, "files": seals, **(records or {})}))
        written = [self._clients.path(client, server_round) for client in client_files.of_round(server_round)]
        sync([partial, *partial.iterdir(), *written, *(each.parent for each in written[:1])])
        partial.replace(self.folder / _name(server_round))
        sync([self.folder])
        self._client_files[server_round] = client_files
        for gone in self._client_files.keys() - set(self._tidied(server_round, keep, passing)):
            unused = self._client_files.pop(gone)
            for pair in unused.unused_by(self._client_files.values()):
                self._clients.remove(*pair)

    def seal_again(self, server_round: int, records: Mapping[str, Any]) -> None:
        """Write the manifest of a checkpoint once more, with what it seals besides its own files."""
        path = self._round(server_round) / MANIFEST
        write_sealed(path, {**read_sealed(path), **records})

    def check(
        self,
        server_round: int,
        clients: Collection[int] | None = None,
        whole: MutableMapping[Path, Seal] | None = None,
    ) -> dict[str, Any] | None:
        """Check that a checkpoint is as it was written.

        Parameters
        ----------
        clients
            Clients whose files are checked; all if not given.
        whole
            Files that other checkpoints share and that were found whole, which are not read again; those found now are
            added.

        Returns
        -------
        manifest
            None if an earlier version wrote the checkpoint, so that damage cannot be noticed.

        Raises
        ------
        DamagedError
            If a file is not as it was written.
        """
        folder = self._round(server_round)
        first = sealed_from(RunFolder(self.folder.parent))
        if not (folder / MANIFEST).exists() and (first is None or server_round < first):
            return None
        manifest = read_sealed(folder / MANIFEST, *OF_MANIFEST)
        if manifest["round"] != server_round:
            raise DamagedError(folder / MANIFEST, f"belongs to round {manifest['round']}")
        check_all({place_in(folder, name): Seal.from_json(seal) for name, seal in manifest["files"].items()})
        if clients is None or clients:
            check_all(ClientFiles.read(folder / CLIENTS).seals(self._clients, clients), whole)
        return manifest

    def load(self, server_round: int, strategy: Strategy, engine: Engine, keep: Container[int] = ()) -> None:
        """Restore strategy and clients to where they were after a round, and remove what a kill left.

        Parameters
        ----------
        keep
            Earlier rounds whose checkpoints are not removed.
        """
        self.read(server_round, strategy, engine)
        for hidden in self.folder.glob(".round-*"):
            shutil.rmtree(hidden)
        for each in self._tidied(server_round, keep):
            with suppress(
                OSError, KeyError, SafetensorError
            ):  # this round has been read; the models of others are lost
                self._client_files[each] = self._read_client_files(each)
        self._clients.keep(pair for each in self._client_files.values() for pair in each.pairs())

    def written_after(self, server_round: int) -> list[int]:
        """Return the clients that had changed since the checkpoint before that of a round, which was loaded."""
        return self._client_files[server_round].of_round(server_round)

    def read(self, server_round: int, strategy: Strategy, engine: Engine) -> None:
        """Restore strategy and clients to where they were after a round; no file is changed."""
        strategy.set_global_model(under_first_names(strategy.model, self.global_model(server_round)))
        strategy.exchange.load_progress(load_file(self._round(server_round) / PROGRESS))
        strategy.load_state(load_file(self._round(server_round) / "strategy.safetensors"))
        engine.load_clients(self._clients.folder, dict(self._read_client_files(server_round).pairs()))

    def files(self, server_round: int) -> Iterator[tuple[str, Path]]:
        """Yield the files of a checkpoint that are equal in equal runs, with their names: its own, and the clients'."""
        for path in sorted(self._round(server_round).glob("*.safetensors")):
            yield path.name, path
        for pair in self._read_client_files(server_round).pairs():
            yield self._clients.path(*pair).name, self._clients.path(*pair)

    def remove(self, server_round: int) -> None:
        """Remove a checkpoint, but not the clients' files, which others share; no part of it ever counts as whole."""
        hidden = self.folder / f".{_name(server_round)}"
        shutil.rmtree(hidden, ignore_errors=True)
        self._round(server_round).replace(hidden)
        shutil.rmtree(hidden)

    def global_model(self, server_round: int) -> Params:
        """Read the global model after a round; earlier versions wrote a tied tensor under its first name only."""
        return load_file(self._round(server_round) / "global.safetensors")

    def _round(self, server_round: int) -> Path:
        kept = self._kept / _name(server_round)
        return kept if kept.exists() else self.folder / _name(server_round)

    def _tidied(self, newest: int, keep: Container[int], passing: Container[int] = ()) -> list[int]:
        """Set the checkpoints of earlier rounds aside or remove them; return the rounds of those that are left.

        The one before the newest stays, as the newest may turn out to be damaged; later ones have.
        """
        if self._round(newest).parent == self._kept:
            self._round(newest).replace(self.folder / _name(newest))
        left = [newest]
        before = max((each for each in self.rounds() if each < newest and each not in passing), default=0)
        for other in self.rounds():
            if other == newest:
                continue
            if other < newest and other not in passing and (other == before or other in keep):
                self._kept.mkdir(exist_ok=True)
                self._round(other).replace(self._kept / _name(other))
                left.append(other)
            else:
                self.remove(other)
        if left == [newest] and self._kept.exists():
            self._kept.rmdir()
        return left

    def _read_client_files(self, server_round: int) -> ClientFiles:
        return ClientFiles.read(self._round(server_round) / CLIENTS)


def _name(server_round: int) -> str:
    return f"round-{server_round:05d}"


def _contiguous(params: Params) -> bytes:
    return save({key: value.cpu().contiguous() for key, value in params.items()})
