"""Files removed under a run: it stops in a line or ends with all rounds, and the same command then makes it whole."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.soak.cases import Tried, problem_of, problem_of_result, whole_run
from benchmarks.soak.folders import run_folder
from benchmarks.soak.forked import fedsim_command
from benchmarks.soak.moments import Moment
from benchmarks.soak.studies import study_of
from fedsim.seeds import rng

WHAT = ("", "", "", "metrics.jsonl", "communication.jsonl", "checkpoints", "barriers", "config.toml", "env.json")


def case(number: int, scratch: Path) -> Tried:
    """Remove the folder of a run, or part of it, or rename it, while it runs."""
    draw, study, tried = rng(number, "folder"), study_of(number), Tried()
    whole, folder = whole_run(study, scratch), scratch / "case"
    study.write(folder)
    what, change = WHAT[draw.integers(len(WHAT))], int(draw.integers(1, whole.changes + 1))
    is_renamed = not what and bool(draw.integers(2))
    act: Callable[[Path, str], None] = _rename if is_renamed else _remove
    how = "renamed" if is_renamed else "removed"
    where = f"{study.name}, {what or 'the folder'} {how} before change {change} of a file"
    ended = fedsim_command(study.command, folder, Moment(change, partial(act, folder, what)))
    tried.counts[how] += 1
    tried.check(problem_of(ended), where)
    if ended.code == 0:
        tried.check(problem_of_result(folder, study, scratch), where)
        return tried
    ended = fedsim_command(study.command, folder)
    tried.check(problem_of(ended), f"{where}, resumed")
    if ended.code == 0:
        tried.check(problem_of_result(folder, study, scratch), f"{where}, resumed")
    return tried


def _remove(folder: Path, what: str) -> None:
    if run := run_folder(folder):
        place = run / what
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def _rename(folder: Path, what: str) -> None:
    if run := run_folder(folder):
        run.rename(folder / "moved")
