"""The command ``python -m benchmarks.soak``: cases until the time is up, their failures, and their figures."""

import argparse
import itertools
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

from benchmarks.machine import describe
from benchmarks.results import save, show
from benchmarks.soak import damage, disk, kills, removed, rounds, signals, together
from benchmarks.soak.cases import Tried
from benchmarks.soak.forked import import_all
from benchmarks.soak.fuzz import blocks

ROOM = 2**30  # bytes
Case = Callable[[int, Path], Tried]
PARTS: dict[str, Case] = {
    "kills": kills.case,
    "signals": signals.case,
    "damage": damage.case,
    "disk": disk.case,
    "folder": removed.case,
    "processes": together.case,
    "fuzz": blocks.case,
    "rounds": rounds.case,
}
# Cases by number that take a few seconds together: what the tests run.
SHORT = {"kills": [0], "damage": [0], "fuzz": [0, 5]}
SHORT_INPUTS = 5  # of each kind


def main() -> None:
    """Run cases of all parts in turn; the exit code is 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="no case begins later (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case of each part (default: 0)")
    parser.add_argument("--cases", type=int, default=sys.maxsize, help="most cases of each part")
    parser.add_argument("--inputs", type=int, default=500, help="made-up inputs of a case of fuzz (default: 500)")
    parser.add_argument("--short", action="store_true", help="run a few cases, always the same")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (default: all)")
    parser.add_argument(
        "--save", action="store_true", help="write the figures to benchmarks/results, next to those of other seeds"
    )
    chosen = parser.parse_args()
    import_all()
    scratch = Path(tempfile.mkdtemp(prefix="fedsim-soak-", dir=_fast_folder()))
    try:
        if chosen.short:
            found = _soak(_in_turn(SHORT), scratch, math.inf, SHORT_INPUTS)
        else:
            numbers = range(chosen.seed, chosen.seed + chosen.cases)
            cases = _in_turn(dict.fromkeys(chosen.only, numbers))
            found = _soak(cases, scratch, 60 * chosen.minutes, chosen.inputs)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    rows = [_row(part, chosen.seed, *each) for part, each in found.items()]
    show("soak", rows, ["part", "cases", "tried", "failures", "seconds"])
    if chosen.save:
        now = {(row["part"], row["seed"]) for row in rows}
        save("soak", describe(), {}, rows, lambda row: (row["part"], row["seed"]) not in now)
    sys.exit(any(row["failures"] for row in rows))


def _in_turn(numbers: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, int]]:
    """Yield parts and numbers of cases: the first case of each part, then the second of each."""
    for at in itertools.count():
        left = [part for part, each in numbers.items() if at < len(each)]
        if not left:
            return
        yield from ((part, numbers[part][at]) for part in left)


def _soak(
    cases: Iterable[tuple[str, int]], scratch: Path, seconds: float, inputs: int
) -> dict[str, tuple[int, Tried, float]]:
    """Run cases until the time is up, or until Ctrl-C.

    Returns
    -------
    found
        By part: how many cases there were, what became of them, and their seconds.
    """
    found: dict[str, tuple[int, Tried, float]] = {}
    deadline = time.monotonic() + seconds
    for part, number in cases:
        start = time.monotonic()
        if start > deadline:
            break
        done, tried, spent = found.get(part, (0, Tried(), 0.0))
        try:
            tried.add(_case(part, number, scratch, inputs))
        except KeyboardInterrupt:
            break
        found[part] = done + 1, tried, spent + time.monotonic() - start
    return found


def _case(part: str, number: int, scratch: Path, inputs: int) -> Tried:
    """Run a case and print how each failure is repeated."""
    shutil.rmtree(scratch / "case", ignore_errors=True)
    try:
        tried = blocks.case(number, scratch, inputs) if part == "fuzz" else PARTS[part](number, scratch)
    except Exception:  # of the soak itself, which continues with the next case
        tried = Tried(failures=[traceback.format_exc()])
    again = f"python -m benchmarks.soak --only {part} --seed {number} --cases 1"
    if part == "fuzz":
        again += f" --inputs {inputs}"
    for failure in tried.failures:
        print(f"\n{part} {number}: {failure}\n  repeat: {again}", flush=True)
    return tried


def _row(part: str, seed: int, cases: int, tried: Tried, seconds: float) -> dict[str, object]:
    counts = dict(sorted(tried.counts.items())) | {name: len(values) for name, values in tried.kinds.items()}
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return {
        "part": part,
        "cases": cases,
        "tried": told,
        "failures": len(tried.failures),
        "seconds": round(seconds),
        "seed": seed,
    }


def _fast_folder() -> str | None:
    """Return a folder in memory, if there is a large one: a soak writes much and waits for the disk."""
    memory = "/dev/shm"
    return memory if Path(memory).is_dir() and shutil.disk_usage(memory).free > ROOM else None


if __name__ == "__main__":
    main()
