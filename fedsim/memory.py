"""How much memory is free, and whether something of known size fits into it."""

from pathlib import Path

MEMORY, PROCESS = Path("/proc/meminfo"), Path("/proc/self/status")
# Of a container, whose limit may be below what the machine has.
LIMIT, USED, STATISTICS = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current", "memory.stat"))

# About what Python and torch take for a held tensor besides its values: an estimate, from 4.5 KB measured for a client
# that took part with a small personal head, whose state has 400 bytes of values.
TENSOR_BYTES = 1024


def free_bytes() -> int | None:
    """Return how many bytes of memory are free, of the machine or of its container.

    Returns
    -------
    bytes
        None where the system does not tell: elsewhere than on Linux.
    """
    try:
        machine = 1024 * _number_in(MEMORY, "MemAvailable:")
    except (OSError, ValueError):
        return None
    try:
        # What the system holds of files it drops when the memory is needed.
        return min(machine, int(LIMIT.read_text()) - int(USED.read_text()) + _number_in(STATISTICS, "inactive_file "))
    except (OSError, ValueError):  # without a container, or with one that has no limit
        return machine


def peak_bytes() -> int | None:
    """Return the most memory that this process has held so far; None where the system does not tell."""
    try:
        return 1024 * _number_in(PROCESS, "VmHWM:")
    except (OSError, ValueError):
        return None


def check_fits(needed: int, what: str) -> None:
    """Check that something fits into the free memory before any of it is taken: Linux kills who takes too much.

    Raises
    ------
    MemoryError
        If it does not.
    """
    free = free_bytes()
    if free is not None and needed > free:
        raise MemoryError(f"{what} needs {needed:,} bytes of memory, and {free:,} are free")


def _number_in(path: Path, name: str) -> int:
    line = next((line for line in path.read_text().splitlines() if line.startswith(name)), name)
    return int(line.removeprefix(name).split()[0])
