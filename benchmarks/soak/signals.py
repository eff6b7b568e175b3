"""Signals: a run that is told to stop ends in a line, leaves nothing, and resumes; a second signal ends it at once."""

import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.soak.cases import Tried, left_in, problem_of, problem_of_result, whole_run
from benchmarks.soak.forked import Ended, Forked, fedsim_command
from benchmarks.soak.moments import Moment, kill_itself
from benchmarks.soak.studies import study_of
from fedsim.seeds import rng

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
AT_ONCE = 20.0  # seconds within which a run ends


def case(number: int, scratch: Path) -> Tried:
    """Send one or two signals to a run, then let it end."""
    draw, study, tried = rng(number, "signals"), study_of(number), Tried()
    whole, folder = whole_run(study, scratch), scratch / "case"
    study.write(folder)
    name = SIGNALS[number % len(SIGNALS)]
    change, twice = int(draw.integers(1, whole.changes + 1)), bool(draw.integers(2))
    where = f"{study.name}, {name.name} before change {change} of a file"
    forked = Forked(study.command, folder, Moment(change, partial(kill_itself, name)))
    if twice:
        again, seconds = SIGNALS[draw.integers(len(SIGNALS))], draw.uniform(0, 1.5 * whole.seconds)
        where += f", {again.name} after {seconds:.2f} s"
        time.sleep(seconds)
        forked.signal(again)
    ended = forked.wait()
    tried.counts["signals"] += 1 + twice
    tried.kind("strategies", study.strategy)
    if ended.code not in [-each for each in SIGNALS] or not twice:  # as a second one may end it
        tried.check(problem_of(_as_others_fail(ended)), where)
        tried.check(left_in(folder), where)
    tried.check(ended.err if "Traceback" in ended.err else "", where)
    tried.check(f"it took {ended.seconds:.0f} s" if ended.seconds > AT_ONCE + whole.seconds else "", where)
    ended = fedsim_command(study.command, folder)
    if tried.check(problem_of(ended) or ("" if not ended.code else ended.err), where):
        tried.check(problem_of_result(folder, study, scratch), where)
        tried.check(left_in(folder), where)
    return tried


def _as_others_fail(ended: Ended) -> Ended:
    """Return a command that ended with a shell's exit code for a signal as if it had ended with 1."""
    return replace(ended, code=1) if ended.code in [128 + each for each in SIGNALS] else ended
