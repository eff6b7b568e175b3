"""Seals: the size and the hash of a file as it was written, by which damage is noticed when it is read."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from fedsim.errors import ConfigError, message_of
from fedsim.reading import check_file, read_bytes
from fedsim.results.disk import sync
from fedsim.results.files import write_whole

THREADS = 8
LARGE = 64 << 20
CHUNK = 1 << 20
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
        self.path = path
        self.problem = problem


@dataclass(frozen=True)
class Seal:
    """What a file was when it was written.

    Parameters
    ----------
    size
        In bytes; None if only the hash is known.
    sha256
        Hexadecimal digits.
    rows
        Number of lines of a file to which rows are appended.
    """

    size: int | None
    sha256: str
    rows: int | None = None

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Return the seal of a file with this content."""
        return cls(len(content), hashlib.sha256(content).hexdigest())

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Self:
        """Return what `to_json` has written."""
        return cls(written["bytes"], written["sha256"], written.get("rows"))

    def to_json(self) -> dict[str, Any]:
        """Return it as one object."""
        rows = {} if self.rows is None else {"rows": self.rows}
        return {**rows, "bytes": self.size, "sha256": self.sha256}

    def check(self, path: Path, *, beginning: bool = False) -> None:
        """Check that a file is the one that was sealed.

        Parameters
        ----------
        beginning
            Whether more may follow, as the rows of later rounds do.

        Raises
        ------
        DamagedError
            If it is missing, cannot be read, or has another content.
        ConfigError
            If its user must not read it, which is no damage.
        """
        try:
            found = seal_of(path, self.size if beginning else None)
        except FileNotFoundError:
            raise DamagedError(path, "is missing") from None
        except PermissionError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); ask its owner for access") from error
        except OSError as error:
            raise DamagedError(path, f"cannot be read ({error.strerror})") from error
        if self.size not in (None, found.size):
            raise DamagedError(path, f"has {found.size} bytes, and {self.size} were written")
        if found.sha256 != self.sha256:
            raise DamagedError(path, "differs from what was written")


def seal_of(path: Path, size: int | None = None) -> Seal:
    """Return the seal of a file as it is now, or of its first bytes.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    check_file(path)
    digest, left = hashlib.sha256(), sys.maxsize if size is None else size
    with path.open("rb") as file:
        while chunk := file.read(min(left, CHUNK)):
            digest.update(chunk)
            left -= len(chunk)
        return Seal(file.tell(), digest.hexdigest())


def seals_of(paths: Sequence[Path]) -> list[Seal]:
    """Return the seals of files as they are now, in order."""
    return _of_each(seal_of, paths)


def check_all(seals: Mapping[Path, Seal], whole: MutableMapping[Path, Seal] | None = None) -> None:
    """Check many files.

    Parameters
    ----------
    whole
        Files that were found to be the ones that were sealed, which are not read again; those found now are added.

    Raises
    ------
    DamagedError
        For the first that is not the one that was sealed.
    """
    known = {} if whole is None else whole
    _of_each(lambda path: seals[path].check(path), [path for path in seals if known.get(path) != seals[path]])
    known.update(seals)


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with the hash of itself: whole or not at all, and on the disk when this returns."""
    write_whole(path, sealed(content))
    sync([path])
    sync([path.parent])


def sealed(content: Mapping[str, Any]) -> str:
    """Return a JSON object as text, with the hash of itself."""
    plain = json.loads(json.dumps(content, default=str))  # what a reader will find
    return json.dumps({**plain, OF_ITSELF: hash_of(plain)}, indent=1) + "\n"


def read_sealed(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that `write_sealed` has written, without the hash.

    Parameters
    ----------
    keys
        Keys that the object must have, so that another sealed file in its place is noticed.

    Raises
    ------
    DamagedError
        If the file is missing, damaged or another one.
    """
    try:
        content = json.loads(read_bytes(path))
    except FileNotFoundError:
        raise DamagedError(path, "is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(path, f"is damaged ({message_of(error)})") from error
    if (
        not isinstance(content, dict)
        or content.pop(OF_ITSELF, None) != hash_of(content)
        or not content.keys() >= {*keys}
    ):
        raise DamagedError(path, "differs from what was written")
    return content


def place_in(folder: Path, name: str) -> Path:
    """Return the place of a file that a seal names.

    Raises
    ------
    DamagedError
        If it is not in the folder.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DamagedError(folder, f"names {name!r}, which is outside of it")
    return folder / name


def hash_of(content: Any) -> str:
    """Return the SHA-256 of what a JSON file says, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _of_each(work: Callable[[Path], Found], paths: Sequence[Path]) -> list[Found]:
    """Do the same with each file; in threads if there is much to hash, which Python does outside its lock."""
    if sum(path.stat().st_size for path in paths if path.exists()) < LARGE:
        return [work(path) for path in paths]
    with ThreadPoolExecutor(min(THREADS, len(paths))) as threads:
        return list(threads.map(work, paths))
