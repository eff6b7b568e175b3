"""Many rounds: memory, descriptors, threads, temporary files and the seconds of a round stay as they were."""

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.soak.cases import Tried, problem_of
from benchmarks.soak.forked import Forked
from benchmarks.soak.studies import study_of
from fedsim.experiment.rounds import Rounds, RoundSummary

ROUNDS, LOOKS, SETTLED = 5000, 100, 0.2  # share of the rounds after which nothing may grow any more
MEMORY_GROWTH = 0.01  # share by which memory may, as a run keeps its curves
SLOWER = 1.5  # times the seconds of a round in the first half that those in the second may take
HANGS = 3600.0  # seconds


@dataclass(frozen=True)
class Look:
    """What a process holds after a round."""

    server_round: int
    seconds: float
    memory: int
    descriptors: int
    threads: int
    temporary_files: int


def case(number: int, scratch: Path) -> Tried:
    """Run a study for many rounds and look at its process now and then."""
    tried, folder = Tried(), scratch / "case"
    study = replace(study_of(number), rounds=ROUNDS)
    study.write(folder)
    # Without the measurements, each of which is a file, and evaluated as rarely as a report of so many rounds needs.
    settings = ("--set", "barriers.every=0", "--set", f"evaluate_every={ROUNDS // LOOKS}")
    seen = folder / "looks.jsonl"
    ended = Forked([*study.command, *settings], folder, partial(_look, seen)).wait(HANGS)
    tried.check(problem_of(ended) or ("" if not ended.code else ended.err), study.name)
    looks = [Look(**json.loads(line)) for line in seen.read_text().splitlines()]
    tried.counts["rounds"] += looks[-1].server_round if looks else 0
    for problem in _growth(looks):
        tried.check(problem, study.name)
    if looks:
        tried.counts["MB in the end"] = round(looks[-1].memory / 1e6)
    return tried


def _look(seen: Path) -> None:
    """Have the rounds of this process write what it holds, now and then."""
    run_round, start = Rounds.run_round, perf_counter()

    def watched(self: Rounds, server_round: int) -> RoundSummary:
        summary = run_round(self, server_round)
        if server_round % (ROUNDS // LOOKS) == 0:
            with seen.open("a") as file:
                file.write(json.dumps(asdict(_held(server_round, perf_counter() - start))) + "\n")
        return summary

    Rounds.run_round = watched  # type: ignore[method-assign]


def _held(server_round: int, seconds: float) -> Look:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Look(
        server_round,
        seconds,
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(list(Path("/proc/self/fd").iterdir())),
        threading.active_count(),
        len(list(Path(os.environ["TMPDIR"]).rglob("*"))),
    )


def _growth(looks: Sequence[Look]) -> list[str]:
    """Return what grew, in words."""
    settled = looks[int(SETTLED * len(looks)) :]
    if not settled:
        return ["no round was seen"]
    first, last = settled[0], settled[-1]
    found = [
        f"{name} grew from {getattr(first, name)} to {getattr(last, name)}"
        for name in ("descriptors", "threads", "temporary_files")
        if getattr(last, name) > getattr(first, name)
    ]
    if last.memory > (1 + MEMORY_GROWTH) * first.memory:
        found.append(f"memory grew from {first.memory / 1e6:.1f} to {last.memory / 1e6:.1f} MB")
    steps = np.diff([look.seconds for look in settled])
    halves = [float(np.median(half)) for half in np.array_split(steps, 2)]
    if halves[1] > SLOWER * halves[0]:
        found.append(f"{ROUNDS // LOOKS} rounds took {halves[0]:.2f} s in the first half and {halves[1]:.2f} s then")
    return found
