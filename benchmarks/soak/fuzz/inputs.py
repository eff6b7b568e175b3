"""An input of the command line, and what must hold whatever it is."""

import gc
import importlib
import io
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from types import FrameType

from benchmarks.soak.cases import LONGEST
from fedsim.cli import main

HANGS, WAITS = 20.0, 120.0  # seconds of processor time, and of any time on a machine that others use too
LINES = 2
TOLD, FILES = 800, 4  # letters of a file, and files, that are told
Make = Callable[[Path], None]  # what is no plain file, such as a fifo


class HangError(BaseException):
    """A command that takes too long; no code that catches exceptions catches it."""


@dataclass(frozen=True)
class Input:
    """A command and the files that it finds in its working folder.

    Parameters
    ----------
    made
        By name: functions that make what is no plain file.
    always
        Names of files that are not told of, as every input has them.
    """

    arguments: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    made: Mapping[str, Make] = field(default_factory=dict)
    always: frozenset[str] = frozenset(("models.py", "broken.py", "empty.py"))

    @property
    def size(self) -> int:
        """The number of letters and bytes, which is least for the input that is told of those with one problem."""
        return sum(map(len, self.arguments)) + sum(map(len, self.files.values()))

    def __str__(self) -> str:
        """Return it in words, with the beginnings of files."""
        texts = [(name, repr(content)) for name, content in self.files.items() if name not in self.always]
        files = [f"{name}: {text if len(text) < TOLD else f'{text[:TOLD]} ...'}" for name, text in texts[:FILES]]
        return "\n    ".join([f"fedsim {' '.join(map(repr, self.arguments))}"[:TOLD], *files, *self.made])


def problem_of(given: Input, folder: Path) -> str:
    """Give an input to the command line in an empty folder; return what is wrong with the answer, without values."""
    _prepare(folder, given)
    before = _files(folder)
    code, err = _call(given.arguments, folder)
    lines = err.splitlines()
    if "Traceback" in err:
        return f"traceback: {lines[-1].partition(':')[0]} ({_place(lines)})"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if code and len(lines) > LINES:
        return f"{len(lines)} lines: {_without_values(lines[-1])}"
    if code and len(lines[-1] if lines else "") > LONGEST:
        return f"more than {LONGEST} letters: {_without_values(lines[-1])}"
    if code == 2 and (written := _files(folder) - before):
        return f"rejected, and wrote {min(written)}"
    return ""


def _prepare(folder: Path, given: Input) -> None:
    with suppress(FileNotFoundError):
        os.chdir(folder.parent)
        rmtree(folder)
    folder.mkdir()
    os.chdir(folder)
    for name, content in given.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, make in given.made.items():
        make(folder / name)


def _call(arguments: tuple[str, ...], folder: Path) -> tuple[int, str]:
    """Call the command line in this process; return the exit code and what it printed to stderr."""
    sys.argv = ["fedsim", *(each.replace("\0", "") for each in arguments)]  # which no system hands on
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    path, modules = list(sys.path), set(sys.modules)
    code = 0
    with redirect_stdout(out), redirect_stderr(err), _deadline():
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
    sys.path[:] = path
    _forget(modules)
    err.flush()
    return code, err.buffer.getvalue().decode(errors="replace")  # type: ignore[attr-defined]


def _forget(known: set[str]) -> None:
    """Undo what a command leaves in its process: loggers, and the modules of its working folder."""
    for name in ("", "fedsim"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(Path.cwd())):
            del sys.modules[name]
    importlib.invalidate_caches()
    gc.collect(0)


@contextmanager
def _deadline() -> Iterator[None]:
    """Raise a `HangError` in what takes too long."""

    def hang(number: int, frame: FrameType | None) -> None:
        raise HangError(f"more than {HANGS:.0f} s of processor time, or {WAITS:.0f} s of waiting")

    timers = {signal.ITIMER_PROF: (signal.SIGPROF, HANGS), signal.ITIMER_REAL: (signal.SIGALRM, WAITS)}
    before = {number: signal.signal(number, hang) for number, _ in timers.values()}
    try:
        for timer, (_, seconds) in timers.items():
            signal.setitimer(timer, seconds)
        yield
    finally:
        for timer, (number, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def _files(folder: Path) -> set[str]:
    """Return the names of all files, without what Python keeps of modules."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def _place(lines: list[str]) -> str:
    """Return the innermost place of fedsim in a traceback."""
    places = [line.strip() for line in lines if line.strip().startswith("File ")]
    ours = [line for line in places if "site-packages" not in line and "lib/python" not in line and "soak" not in line]
    return (ours or places or [""])[-1]


def _without_values(line: str) -> str:
    return re.sub(r"'.*?'|\(.*?\)|\d+|\".*?\"", "_", line)[:120]
