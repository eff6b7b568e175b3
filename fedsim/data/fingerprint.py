"""Hashes of files and folders by their content; a file is read once per process until it changes."""

import json
import os
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fedsim.memory import check_fits
from fedsim.reading import check_file

T = TypeVar("T")

# Of files that a reader takes into memory as a whole.
READ_WHOLE = {".npz", ".npy", ".safetensors", ".json", ".csv", ".txt", ".pt", ".pth", ".ckpt"}
# Some file systems count whole seconds or two, so that a file may be written again without another time.
SETTLED_SECONDS = 2.5
# What Python writes as it imports a module from a folder.
BYTECODE = "__pycache__"
_digests: dict[tuple[int, ...], str] = {}
_found: ContextVar[dict[Hashable, Any] | None] = ContextVar("found", default=None)


def fingerprint(place: Path) -> str:
    """Return eight hexadecimal digits: a hash of a file's bytes, or of the names and bytes of all files in a folder.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    check_file(place)
    return once(place.absolute(), lambda: digest_of(place)[:8] if place.is_file() else _of_folder(place))


def once(key: Hashable, look: Callable[[], T]) -> T:
    """Return what is found under a key, looking only once in all that is done within `looking_once`."""
    known = _found.get()
    if known is None:
        return look()
    if key not in known:
        known[key] = look()
    found: T = known[key]
    return found


@contextmanager
def looking_once() -> Iterator[None]:
    """Look at each file and folder only once meanwhile: one of many files takes a while, also if none is read."""
    token = _found.set({} if _found.get() is None else _found.get())
    try:
        yield
    finally:
        _found.reset(token)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, which is read again only if the file's size, times or place on the disk differ.

    The time of the last change of its metadata is among these: whoever sets the time of modification back changes it.

    Raises
    ------
    OSError
        If the file cannot be read.
    MemoryError
        If it is larger than the free memory, and read as a whole.
    """
    status = status_of(path)
    if status in _digests:
        return _digests[status]
    if path.suffix in READ_WHOLE:
        check_fits(path.stat().st_size, str(path))  # which hashing it does not need, but reading it
    began = time.time_ns()
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    if status == status_of(path) and began - max(status[-2:]) > SETTLED_SECONDS * 1e9:
        _digests[status] = digest
    return digest


def status_of(path: Path) -> tuple[int, ...]:
    """Return numbers that change when a file is written or replaced: its place on the disk, its size and its times.

    Raises
    ------
    OSError
        If it does not exist, or is no file.
    """
    status = check_file(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _of_folder(place: Path) -> str:
    names = [name for name in names_in(place) if name.endswith("/") or (place / name).is_file()]
    files = [name for name in names if not name.endswith("/")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = dict(zip(files, pool.map(lambda name: digest_of(place / name), files), strict=True))
    listing = sorted([name, digests.get(name, "")] for name in names)
    return sha256(json.dumps(listing).encode()).hexdigest()[:8]


def names_in(place: Path) -> Iterator[str]:
    """Yield what is below a folder, its folders with a trailing slash, links followed, each folder once.

    Raises
    ------
    OSError
        If a folder cannot be read.
    """
    seen: set[str] = set()
    for folder, folders, files in os.walk(place, followlinks=True, onerror=_raise):
        relative = Path(folder).relative_to(place)
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(each for each in folders if each != BYTECODE)
        yield from (f"{(relative / each).as_posix()}/" for each in folders)
        yield from ((relative / each).as_posix() for each in files)


def _raise(error: OSError) -> NoReturn:
    raise error
