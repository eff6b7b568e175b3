"""Moments in a process that are the same in each repetition: just before it changes a file for the n-th time."""

import mmap
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Counter:
    """The number of changes that a forked process makes to files below its working folder."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        """How many there have been so far."""
        return struct.unpack("q", self._memory[:8])[0]

    def add(self) -> int:
        """Count one more; return which it is, from 1."""
        value = self.value + 1
        self._memory[:8] = struct.pack("q", value)
        return value


@dataclass(frozen=True)
class Moment:
    """What happens before which change.

    Parameters
    ----------
    number
        Which of the changes, from 1; 0 for none.
    action
        Is called just before it.
    of
        Part of the path of those changes that count.
    """

    number: int
    action: Callable[[], None]
    of: str = ""
    counter: Counter = field(default_factory=Counter)

    def __call__(self) -> None:
        """Begin to count, in the forked process."""
        pid, folder = os.getpid(), str(Path.cwd())
        temporary = str(Path.cwd() / "temporary")
        acting = False

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal acting
            if acting or not (event in CHANGES or (event == "open" and arguments[2] & WRITES)):
                return
            path = str(arguments[0])
            if path.startswith("/") and (not path.startswith(folder) or path.startswith(temporary)):
                return
            if self.of not in path or os.getpid() != pid:
                return
            if self.counter.add() == self.number:
                acting = True
                self.action()
                acting = False

        sys.addaudithook(hook)


def kill_itself(number: int = signal.SIGKILL) -> None:
    """Send a signal to the own process."""
    os.kill(os.getpid(), number)


def die_in_a_write(size: int) -> None:
    """Let the own process die in the write that makes a file larger than a number of bytes, which it gets."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def fail_in_a_write(size: int) -> None:
    """Let no file of the own process become larger: the write fails, as it does when a disk is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
