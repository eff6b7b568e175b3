"""Commands with Ray: real processes, as Ray may not be forked, with all that they start."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.child import ROOT
from benchmarks.processes import marked
from benchmarks.soak.folders import run_folder
from benchmarks.soak.forked import CRASHED, Ended

MARK = "FEDSIM_SOAK"
HANGS = 300.0  # seconds
BEGINS = 0.02  # seconds between looks at whether the rounds have begun


class OnRay:
    """A command whose clients run on Ray; everything that it started ends with it."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.arguments, self._folder = list(arguments), folder
        self._mark = f"{os.getpid()}-{time.monotonic_ns()}"
        temporary = folder / "temporary"
        temporary.mkdir(exist_ok=True)
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._started = time.perf_counter()
        with (folder / ".out").open("w") as out, (folder / ".err").open("w") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedsim", *self.arguments],
                cwd=folder,
                env=os.environ | {MARK: self._mark, "TMPDIR": str(temporary), "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def wait_for_rounds(self) -> None:
        """Wait until the run has a folder, or is over."""
        while self._process.poll() is None and not run_folder(self._folder):
            time.sleep(BEGINS)

    def signal(self, number: int) -> None:
        """Send a signal to the command, not to what it started."""
        self._process.send_signal(number)

    def wait(self) -> Ended:
        """Wait for its end, then end what it has left."""
        try:
            code = self._process.wait(HANGS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = CRASHED
        seconds = time.perf_counter() - self._started
        self._end_others()
        out, err = ((self._folder / name).read_text() for name in (".out", ".err"))
        return Ended(" ".join(["fedsim", *self.arguments]), code, out, err, seconds)

    def _end_others(self) -> None:
        while left := marked(f"{MARK}={self._mark}"):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(BEGINS)
