"""The records of a run that is under way: written by this process alone, and sealed after each round."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedsim.errors import RunError, about_file
from fedsim.results.disk import sync
from fedsim.results.files import keep_rounds, read_rows, write_parquet
from fedsim.results.folder import RunFolder
from fedsim.results.seals import CHUNK, Seal, hash_of, seal_of

if TYPE_CHECKING:
    import pandas as pd

Name = Literal["metrics", "communication", "faults", "variances", "timing"]
RERUN = "the run stops; the same command resumes or starts it again"


class Records:
    """What a run writes: rows of each round, and tables of what was measured in it.

    Parameters
    ----------
    folder
        Folder of the run, whose files hold the rounds before.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        paths = {"metrics": folder.metrics, "communication": folder.communication}
        paths |= {"faults": folder.faults, "variances": folder.variances}
        self._files = {name: _Rows(path) for name, path in paths.items()}
        self._timing = _Rows(folder.timing)
        self._seals = _Rows(folder.seals)
        self._starts: list[Any] = folder.known_env().get("starts", [])
        self._tables: dict[str, Any] = {}
        self._written: set[Path] = set()
        self._lock = _identity(folder.lock)  # which is open, so that no file system gives it another number

    def append(self, name: Name, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to one of the files of JSON lines.

        Raises
        ------
        RunError
            If the file, or the folder, is not where this process left it.
        """
        self.check_in_place()
        file = self._timing if name == "timing" else self._files[name]
        file.append(rows)

    def write_table(self, name: str, server_round: int, table: "pd.DataFrame") -> None:
        """Write what was measured in a round under a name.

        Raises
        ------
        RunError
            If the folder is not where this process left it.
        """
        self.check_in_place()
        path = self._folder.measured(name, server_round)
        write_parquet(path, table)
        self._written |= {path, path.parent}
        self._tables[path.relative_to(self._folder.path).as_posix()] = seal_of(path).to_json()

    def seal_round(self, server_round: int) -> None:
        """Write down what the records are after a round; its timing is known only later."""
        files = {file.path.name: seal.to_json() for file in self._files.values() if (seal := file.seal())}
        self._seals.append([{"round": server_round, "files": files, "tables": self._tables}])
        self._tables = {}

    def seal_again(self, server_round: int) -> None:
        """Write down once more what the records are after the last round, of which rows were dropped."""
        rows = read_rows(self._folder.seals).to_dict("records")
        self._tables = dict(rows[-1]["tables"])
        keep_rounds(self._folder.seals, server_round - 1)
        self._seals = _Rows(self._folder.seals)
        self.seal_round(server_round)

    def sealed(self) -> dict[str, Any]:
        """Return what a checkpoint seals besides its own files: the records, and the starts in ``env.json``.

        They are on the disk when this returns.

        Raises
        ------
        RunError
            If a file, or the folder, is not where this process left it.
        """
        self.check_in_place()
        found = {file.path: seal for file in self._all() if (seal := file.seal())}
        sync([*found, *sorted(self._written), self._folder.path])
        self._written = set()
        starts = {"count": len(self._starts), "sha256": hash_of(self._starts)}
        return {"records": {path.name: seal.to_json() for path, seal in found.items()}, "starts": starts}

    def check_in_place(self) -> None:
        """Check that the folder is the one in which this process began to write.

        Raises
        ------
        RunError
            If it is not.
        """
        if _identity(self._folder.lock) != self._lock:
            raise RunError(f"run folder {self._folder.path} was removed, moved or replaced under its run; {RERUN}")

    def _all(self) -> Iterable["_Rows"]:
        return (*self._files.values(), self._timing, self._seals)


class _Rows:
    """A file of JSON lines to which this process alone appends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hash, self._size, self._rows = hashlib.sha256(), 0, 0
        self._exists = path.exists()
        if self._exists:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    self._add(chunk)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, all in one write."""
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)  # which no other reader would take
        self._check()
        mode = os.O_WRONLY | os.O_APPEND | (0 if self._exists else os.O_CREAT | os.O_EXCL)
        try:
            handle = os.open(self.path, mode, 0o666)  # less the user's umask
        except (FileExistsError, FileNotFoundError):
            raise self._changed() from None
        with about_file(self.path), os.fdopen(handle, "ab") as file:
            self._exists = True
            file.write(lines.encode())
        self._add(lines.encode())

    def seal(self) -> Seal | None:
        """Return the seal of what was written; None if there is no file."""
        self._check()
        return Seal(self._size, self._hash.hexdigest(), self._rows) if self._exists else None

    def _add(self, content: bytes) -> None:
        self._hash.update(content)
        self._size += len(content)
        self._rows += content.count(b"\n")

    def _check(self) -> None:
        size = self.path.stat().st_size if self.path.exists() else None
        if size != (self._size if self._exists else None):
            raise self._changed()

    def _changed(self) -> RunError:
        return RunError(f"{self.path} was removed or changed under the run that writes it; {RERUN}")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
