"""Decoded images on the disk: written once, checked by their hashes before they are used, shared by all processes."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from fedsim.data.fingerprint import status_of
from fedsim.data.places import cache_folder

MANIFEST = "manifest.json"
PIECE, READ = 2**26, 2**20  # bytes that one thread hashes, and that it reads at a time
ELSEWHERE = "set $XDG_CACHE_HOME to another folder"
# What has been found whole in this process, by the size, times and place on the disk of each file.
_checked: set[tuple[tuple[int, ...], ...]] = set()
logger = logging.getLogger(__name__)


def cached(name: str, fill: Callable[[Path], None], what: str, size: int) -> Path:
    """Return the folder of a cache, filled if there is none, or if it is not as it was written.

    Where it is whole nothing is written, so that others may own it, or the disk be read-only.

    Parameters
    ----------
    fill
        Function that writes the files into an empty folder.
    what
        What is cached, for messages.
    size
        Number of bytes that it takes, about.

    Raises
    ------
    ValueError
        If it cannot be written, or as ``fill`` does.
    """
    folder = cache_folder() / "images" / name
    if not _problem(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # one process fills it, the others wait
            if problem := _problem(folder):
                again = f"the cache {folder} {problem}: decoding {what} again"
                logger.warning(again if folder.exists() else f"decoding {what} into the cache {folder} (only once)")
                if (free := shutil.disk_usage(folder.parent).free) < size:
                    raise ValueError(f"the cache {folder} needs {size:,} bytes, and {free:,} are free; {ELSEWHERE}")
                with _replaced(folder) as partial:
                    fill(partial)
                    (partial / MANIFEST).write_text(json.dumps(_manifest(partial)))
    except OSError as error:
        raise ValueError(f"the cache {folder} cannot be written ({error.strerror or error}); {ELSEWHERE}") from error
    return folder


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Give an empty folder, which takes the place of the old one at the end, or leaves no trace."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _problem(folder: Path) -> str:
    """Return what is wrong with a cache; empty if all files are as they were written."""
    try:
        before = tuple(map(status_of, sorted(folder.iterdir())))
        if before in _checked:
            return ""
        if not (folder / MANIFEST).exists():
            return "has no manifest"  # as those of earlier versions
        manifest = dict(json.loads((folder / MANIFEST).read_bytes()))
        found = _manifest(folder)
    except (OSError, ValueError, TypeError, RecursionError):
        return "is damaged"
    if wrong := [name for name in found | manifest if found.get(name) != manifest.get(name)]:
        return f"is damaged in {wrong[0]}"
    _checked.add(before)
    return ""


def _manifest(folder: Path) -> dict[str, list[str]]:
    """Return the hashes of the pieces of each file, by its name."""
    paths = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    pieces = [(path, start) for path in paths for start in range(0, max(path.stat().st_size, 1), PIECE)]
    found: dict[str, list[str]] = {path.name: [] for path in paths}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashes are computed outside Python's lock
        for (path, _), digest in zip(pieces, pool.map(_digest, pieces), strict=True):
            found[path.name].append(digest)
    return found


def _digest(piece: tuple[Path, int]) -> str:
    path, start = piece
    hashed, left = sha256(), PIECE
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while content := file.read(min(READ, left)):
            hashed.update(content)
            left -= len(content)
    return hashed.hexdigest()
