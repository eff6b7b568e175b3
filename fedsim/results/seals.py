"""Seals: the size and the hash of a file as it was written, by which damage is noticed when it is read."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from fedsim.errors import ConfigError, message_of
from fedsim.results.files import write_whole

THREADS = 16  # a disk writes several files at once, and hashes are computed outside Python's lock
OF_ITSELF = "sha256"  # key of a sealed JSON file's own hash
Found = TypeVar("Found")


class DamagedError(ConfigError):
    """A file that is not as it was written.

    Parameters
    ----------
    path
        The file.
    problem
        What is wrong with it, such as ``is missing``.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path} {problem}")


@dataclass(frozen=True)
class Seal:
    """The size of a file in bytes, which may be unknown, and its SHA-256."""

    size: int | None
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Return the seal of a file with this content."""
        return cls(len(content), hashlib.sha256(content).hexdigest())

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Self:
        """Return what `to_json` has written."""
        return cls(written["bytes"], written["sha256"])

    def to_json(self) -> dict[str, Any]:
        """Return it as one object."""
        return {"bytes": self.size, "sha256": self.sha256}

    def check(self, path: Path) -> None:
        """Check that a file is the one that was sealed.

        Raises
        ------
        DamagedError
            If it is missing, cannot be read, or has another content.
        """
        try:
            found = seal_of(path)
        except FileNotFoundError:
            raise DamagedError(path, "is missing") from None
        except OSError as error:
            raise DamagedError(path, f"cannot be read ({error.strerror})") from error
        if self.size not in (None, found.size):
            raise DamagedError(path, f"has {found.size} bytes, and {self.size} were written")
        if found.sha256 != self.sha256:
            raise DamagedError(path, "has another content than was written")


def seal_of(path: Path) -> Seal:
    """Return the seal of a file as it is now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Seal(file.tell(), digest)


def seals_of(paths: Sequence[Path]) -> list[Seal]:
    """Return the seals of files as they are now, in order."""
    return _in_threads(seal_of, paths)


def check_all(seals: Mapping[Path, Seal]) -> None:
    """Check many files.

    Raises
    ------
    DamagedError
        For the first that is not the one that was sealed.
    """
    _in_threads(lambda path: seals[path].check(path), list(seals))


def sync(paths: Iterable[Path]) -> None:
    """Wait until files and folders are on the disk, so that a loss of power does not lose them."""
    _in_threads(_sync, list(paths))


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with the hash of itself: whole or not at all, and on the disk when this returns."""
    write_whole(path, json.dumps({**content, OF_ITSELF: _hash_of(content)}, indent=1) + "\n")
    sync([path, path.parent])


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a JSON object that `write_sealed` has written.

    Raises
    ------
    DamagedError
        If the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedError(path, "is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(path, f"is damaged ({message_of(error)})") from error
    if not isinstance(content, dict) or content.pop(OF_ITSELF, None) != _hash_of(content):
        raise DamagedError(path, "has another content than was written")
    return content


def _hash_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _in_threads(work: Callable[[Path], Found], paths: Sequence[Path]) -> list[Found]:
    if len(paths) < 2:
        return [work(path) for path in paths]
    with ThreadPoolExecutor(min(THREADS, len(paths))) as threads:
        return list(threads.map(work, paths))
