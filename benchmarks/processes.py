"""Processor time and memory of a child with all processes that it started, and of all other processes."""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

TICKS = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")
SAMPLE_SECONDS = 0.1


def marked(mark: str) -> list[int]:
    """Return the processes whose environment holds ``mark``: those of a `benchmarks.child.Child`."""
    found = []
    for path in PROC.glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
    return found


def cpu_seconds(pids: list[int]) -> float:
    """Return the processor time that processes have used so far."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += sum(map(int, (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[11:13]))
    return total / TICKS


def ended_cpu_seconds() -> float:
    """Return the processor time of all children that have ended, with their own children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def pss_bytes(pids: list[int]) -> int:
    """Return the memory of processes; memory that several of them share counts once."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


class PeakMemory:
    """The peak memory of processes while they were watched."""

    def __init__(self) -> None:
        self.bytes = 0

    @contextmanager
    def of(self, mark: str) -> Iterator[None]:
        """Watch the processes with this mark; this slows them down, so do not time them meanwhile."""
        done = Event()

        def watch() -> None:
            while True:
                self.bytes = max(self.bytes, pss_bytes(marked(mark)))
                if done.wait(SAMPLE_SECONDS):
                    return

        thread = Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class Others:
    """The share of the machine that other processes took since this object was created.

    Parameters
    ----------
    mark
        Mark of our own processes, besides this one.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._before = self._now()

    def share(self) -> float:
        """Return the share of all processors, from 0 to 1."""
        wall, busy, own = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return max(0.0, (busy - own) / (wall * (os.cpu_count() or 1)))

    def _now(self) -> tuple[float, float, float]:
        if not (PROC / "stat").exists():
            return time.perf_counter(), 0.0, 0.0
        fields = [int(value) for value in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        busy = (sum(fields) - fields[3] - fields[4]) / TICKS  # all states except idle and waiting
        # Of our own processes some have ended since.
        own = time.process_time() + ended_cpu_seconds() + cpu_seconds(marked(self._mark))
        return time.perf_counter(), busy, own
