"""``fedsim`` commands in forked processes: fedsim and torch are imported once, so that a command takes a moment.

This process must never train: torch may not be forked once it has started threads.
"""

import fcntl
import importlib
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import fedsim
import strategies
from fedsim.cli import main

HANGS = 120.0  # seconds after which a command is taken to hang; its work takes two on an idle processor
CRASHED = 70  # exit code of a command that ended with an exception
NOT_IN_A_FORK = ("__main__", "ray", "actor", "workers", "starting")  # what imports Ray, which starts threads
TRACKERS = "fedsim.experiment.tracking."  # which need packages that may not be installed


@dataclass(frozen=True)
class Ended:
    """A command that is over.

    Parameters
    ----------
    code
        Exit code; negative if a signal of that number ended it.
    """

    command: str
    code: int
    out: str
    err: str
    seconds: float

    @property
    def was_killed(self) -> bool:
        """Whether it ended by the moment that was planned for it, rather than by itself."""
        return self.code in (-signal.SIGKILL, -signal.SIGXFSZ)


def import_all() -> None:
    """Import what commands import when they need it."""
    for package in (fedsim, strategies):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.rpartition(".")[2] not in NOT_IN_A_FORK and not module.name.startswith(TRACKERS):
                importlib.import_module(module.name)
    Figure.savefig = _no_drawing  # type: ignore[method-assign]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _no_drawing(figure: Figure, place: Any, **settings: Any) -> None:
    """Stand for a figure: drawing one takes longer than a whole run."""
    place.write(b"<svg></svg>")


class Forked:
    """A command that runs in a forked process.

    Parameters
    ----------
    folder
        Working folder; temporary files go below it.
    first
        Is called in the forked process before the command.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, first: Callable[[], None] = lambda: None) -> None:
        self.arguments = list(arguments)
        out, err = _wide_pipe(), _wide_pipe()
        self._started = time.perf_counter()
        self.pid = os.fork()
        if not self.pid:
            for number, pipe in ((1, out), (2, err)):
                os.dup2(pipe[1], number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            os._exit(self._run(folder, first))
        self._printed = out[0], err[0]
        os.close(out[1])
        os.close(err[1])

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = HANGS) -> Ended:
        """Wait for its end; one that takes longer is killed, and counts as one that crashed."""
        code = self._code(seconds)
        if code is None:
            self.signal(signal.SIGKILL)
            os.waitpid(self.pid, 0)
        out, err = map(_read_all, self._printed)
        command = " ".join(["fedsim", *self.arguments])
        if code is None:
            code, err = CRASHED, f"{err}Traceback: {command} took more than {seconds:.0f} s\n"
        return Ended(command, code, out, err, time.perf_counter() - self._started)

    def _code(self, seconds: float) -> int | None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        return None

    def _run(self, folder: Path, first: Callable[[], None]) -> int:
        """Run the command in this process, which is the forked one, and return its exit code."""
        code = CRASHED
        try:
            temporary = folder / "temporary"
            temporary.mkdir(exist_ok=True)
            os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
            os.chdir(folder)
            sys.argv = ["fedsim", *self.arguments]
            signal.signal(signal.SIGINT, signal.default_int_handler)
            first()
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return code


def fedsim_command(arguments: Sequence[str], folder: Path, first: Callable[[], None] = lambda: None) -> Ended:
    """Run a command to its end."""
    return Forked(arguments, folder, first).wait()


def _wide_pipe() -> tuple[int, int]:
    """Return a pipe that holds all that a command prints, and on which no limit of file sizes bears."""
    ends = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 2**20)
    return ends


def _read_all(pipe: int) -> str:
    with os.fdopen(pipe, errors="replace") as file:
        return file.read()
