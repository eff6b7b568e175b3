"""A child process that runs a round on request: one for each simulator, so that they can alternate."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

ROOT = Path(__file__).parent.parent
_QUIET_ENV = {
    # Otherwise Ray's workers would yield to every other process, which is not a property of Flower.
    "RAY_worker_niceness": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
MARK = "FEDSIM_BENCHMARK_CHILD"  # a variable in the environment of a child and of all processes that it starts


def own_mark() -> str:
    """Return the mark in the environment of every child of this process."""
    return f"{MARK}={os.getpid()}-"


RunRound = Callable[[dict[str, Any]], dict[str, Any]]


def command_of(module: str) -> list[str]:
    """Return the command that runs ``main`` of a module of this folder; Ray's workers import it by that name."""
    return [sys.executable, "-P", "-c", f"from benchmarks.{module} import main; main()"]


class Answers:
    """The child's side: requests arrive on stdin; everything else that is printed to stdout goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def give(self, answer: dict[str, Any]) -> None:
        """Send an answer."""
        print(json.dumps(answer), file=self._out, flush=True)

    def serve(self, run_round: RunRound) -> None:
        """Announce that the child is ready, then run and time a round for each request, until stdin ends."""
        self.give({})
        for line in sys.stdin:
            start = time.perf_counter()
            answer = run_round(json.loads(line))
            self.give({"seconds": time.perf_counter() - start} | answer)


class Child:
    """The parent's side.

    Parameters
    ----------
    command
        Command to run; its log goes to ``log``.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.mark = f"{own_mark()}{time.monotonic_ns()}"
        name, _, value = self.mark.partition("=")
        self._log = log
        self._started = time.perf_counter()
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=os.environ | _QUIET_ENV | {"PYTHONPATH": str(ROOT), name: value},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> float:
        """Wait until the child is ready; return the seconds since it was started."""
        self._read()
        return time.perf_counter() - self._started

    def ask(self, **request: Any) -> dict[str, Any]:
        """Let the child run a round; return its answer."""
        stdin: IO[str] = self._process.stdin  # type: ignore[assignment]
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the child."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            said = [text for text in self._log.read_text().splitlines() if text.strip()]
            raise RuntimeError(said[-1] if said else f"it ended with code {self._process.wait()}")
        return json.loads(line)
