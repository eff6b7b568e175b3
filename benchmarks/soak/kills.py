"""Kills: a run that was killed at any moment, and again, ends with the bytes of one that never stopped."""

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.soak.cases import Tried, Whole, left_in, problem_of, problem_of_result, whole_run
from benchmarks.soak.forked import Ended, Forked, fedsim_command
from benchmarks.soak.moments import Moment, die_in_a_write, kill_itself
from benchmarks.soak.on_ray import OnRay
from benchmarks.soak.studies import study_of
from fedsim.seeds import rng

KILLS = 4  # of one run
# Cases of which one is on Ray, which takes a hundred times as long; no divisor of the number of strategies.
RAY_EVERY = 21


def case(number: int, scratch: Path) -> Tried:
    """Kill a run several times, then let it end."""
    draw, tried = rng(number, "kills"), Tried()
    local, folder = study_of(number), scratch / "case"
    whole = whole_run(local, scratch)  # which is the same on Ray
    on_ray = number % RAY_EVERY == RAY_EVERY - 1
    study = replace(local, engine="ray", workers=2) if on_ray else local
    study.write(folder)
    told = []
    for _ in range(KILLS):
        how, ended = (_killed_on_ray if on_ray else _killed)(draw, study.command, folder, whole)
        told.append(how)
        if not ended.was_killed:  # it was over before
            tried.check(problem_of(ended) or f"ended with exit code {ended.code}" if ended.code else "", study.name)
            break
        tried.counts["kills"] += 1
        tried.counts["kills on Ray" if on_ray else f"kills {how.partition(' ')[0]}"] += 1
    ended = OnRay(study.command, folder).wait() if on_ray else fedsim_command(study.command, folder)
    where = f"{study.name}, killed {', then '.join(told)}"
    if tried.check(problem_of(ended) or ("" if not ended.code else ended.err), where):
        tried.check(problem_of_result(folder, local, scratch), where)
        tried.check(left_in(folder), where)
    tried.counts["runs"] += 1
    tried.kind("strategies", study.strategy)
    return tried


def _killed(draw: np.random.Generator, command: list[str], folder: Path, whole: Whole) -> tuple[str, Ended]:
    """Start a command and kill it; return when, in words, and how it ended."""
    kind = draw.choice(["before", "in", "after"], p=[0.4, 0.2, 0.4])
    if kind == "after":
        seconds = draw.uniform(0, whole.seconds)
        forked = Forked(command, folder)
        time.sleep(seconds)
        forked.signal(signal.SIGKILL)
        return f"after {seconds:.2f} s", forked.wait()
    planned: tuple[str, Callable[[], None]]
    if kind == "before":
        change = int(draw.integers(1, whole.changes + 1))
        planned = f"before change {change} of a file", Moment(change, kill_itself)
    else:
        size = int(np.exp(draw.uniform(0, np.log(whole.largest))))
        planned = f"in the write of byte {size} of a file", partial(die_in_a_write, size)
    return planned[0], fedsim_command(command, folder, planned[1])


def _killed_on_ray(draw: np.random.Generator, command: list[str], folder: Path, whole: Whole) -> tuple[str, Ended]:
    """Start a command with Ray and kill it a while after it has a folder."""
    seconds = draw.uniform(0, 4 * whole.seconds)
    process = OnRay(command, folder)
    process.wait_for_rounds()
    time.sleep(seconds)
    process.signal(signal.SIGKILL)
    return f"{seconds:.2f} s after the start of the rounds", process.wait()
