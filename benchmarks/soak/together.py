"""Several processes on one folder: one runs, the others say that it does, and the run is as if it had been alone."""

import signal
import time
from pathlib import Path

from benchmarks.soak.cases import Tried, problem_of, problem_of_result, whole_run
from benchmarks.soak.forked import Forked, fedsim_command
from benchmarks.soak.studies import study_of
from fedsim.seeds import rng


def case(number: int, scratch: Path) -> Tried:
    """Start a run two or three times at once; perhaps kill one."""
    draw, study, tried = rng(number, "processes"), study_of(number), Tried()
    whole, folder = whole_run(study, scratch), scratch / "case"
    study.write(folder)
    count, is_killed = int(draw.integers(2, 4)), bool(draw.integers(2))
    running, told = [], []
    for _ in range(count):
        running.append(Forked(study.command, folder))
        told.append(draw.uniform(0, whole.seconds))
        time.sleep(told[-1])
    if is_killed:
        running[draw.integers(count)].signal(signal.SIGKILL)
    where = f"{study.name}, {count} started {', '.join(f'{each:.2f}' for each in told)} s apart, killed: {is_killed}"
    ended = [each.wait() for each in running]
    for each in ended:
        if not each.was_killed:
            tried.check(problem_of(each), where)
            is_told = each.code == 0 or "in use by another process" in each.err
            tried.check("" if is_told else f"{each.command} failed: {each.err}", where)
    tried.counts["processes"] += count
    last = fedsim_command(study.command, folder)
    if tried.check(problem_of(last) or ("" if not last.code else last.err), where):
        tried.check(problem_of_result(folder, study, scratch), where)
    return tried
