"""Temporary folders that end with their process: what one that was killed has left, the user's next run removes."""

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".scratch.lock"  # no folder of a user's has such a file


class Scratch:
    """A temporary folder, removed by `remove` or when nothing needs it any more.

    Its process holds a lock in it, which the system releases however the process ends, and which no process that lives,
    in this container or another one, can be mistaken about.

    Parameters
    ----------
    what
        Word for what it holds, a part of its name.
    parent
        Where it is made; by default the system's temporary folder.
    """

    def __init__(self, what: str, parent: Path | None = None) -> None:
        self.path, lock = _made(what, parent)
        self.remove = weakref.finalize(self, _remove, self.path, lock)


def remove_leftovers(parent: Path) -> None:
    """Remove the folders of this user's processes that have ended without it."""
    for path in parent.glob("fedsim-*-????????"):
        try:
            if path.is_symlink() or not (path / LOCK).is_file() or path.stat().st_uid != getattr(os, "geteuid", int)():
                continue
            with FileLock(path / LOCK, timeout=0) as lock:
                _remove(path, lock)
        except (OSError, Timeout, NotImplementedError):  # it is in use, another run removes it, or nobody can lock it
            continue


def _made(what: str, parent: Path | None) -> tuple[Path, FileLock]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"fedsim-{what}-", dir=parent))
        lock = FileLock(path / LOCK, timeout=0, thread_local=False)
        # Another run may take it for a leftover in the moment before it is locked, or have done so, and then the lock
        # has made it again, perhaps open to others.
        with suppress(Timeout, FileNotFoundError, PermissionError):
            with suppress(NotImplementedError):  # a file system without locks, on which it is never a leftover
                lock.acquire()
            path.chmod(0o700)
            return path, lock


def _remove(path: Path, lock: FileLock) -> None:
    shutil.rmtree(path, ignore_errors=True)
    lock.release()
