"""A full disk: the run ends in a line that names a place, and resumes once there is room."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np

from benchmarks.soak.cases import Tried, problem_of, problem_of_result, whole_run
from benchmarks.soak.forked import Ended, fedsim_command
from benchmarks.soak.moments import fail_in_a_write
from benchmarks.soak.studies import Study, study_of
from fedsim.seeds import rng

PAGE = 4096  # bytes: a disk in memory holds whole ones
ROOM = 2**26  # bytes of a disk that is large enough


def case(number: int, scratch: Path) -> Tried:
    """Run a study on a small disk, or with a limit on its files; then give it room."""
    draw, study, tried = rng(number, "disk"), study_of(number), Tried()
    whole, folder = whole_run(study, scratch), scratch / "case"
    study.write(folder)
    if number % 2 and _may_mount():
        pages = int(draw.integers(4, sum(1 + len(each) // PAGE for each in whole.files.values()) * 2))
        where = f"{study.name}, on a disk of {pages} pages"
        with _small_disk(folder / "runs", pages * PAGE) as enlarge:
            ended = fedsim_command(study.command, folder)
            tried.counts["full disks"] += ended.code != 0
            _check(tried, ended, where, study, folder, scratch, enlarge)
    else:
        size = int(np.exp(draw.uniform(0, np.log(2 * whole.largest))))
        where = f"{study.name}, in the write of byte {size} of a file"
        ended = fedsim_command(study.command, folder, partial(fail_in_a_write, size))
        tried.counts["failed writes"] += ended.code != 0
        _check(tried, ended, where, study, folder, scratch, lambda: None)
    return tried


def _check(
    tried: Tried, ended: Ended, where: str, study: Study, folder: Path, scratch: Path, enlarge: Callable[[], object]
) -> None:
    if ended.code:
        tried.check(problem_of(ended), where)
        lines = [line for line in ended.err.splitlines() if "error: " in line]
        named = any(re.search(r"runs|study|/", line) for line in lines)
        tried.check("" if named else f"no place is named: {ended.err}", where)
        enlarge()
        ended = fedsim_command(study.command, folder)
    if tried.check(problem_of(ended) or ("" if not ended.code else ended.err), where):
        tried.check(problem_of_result(folder, study, scratch), where)


@contextmanager
def _small_disk(place: Path, size: int) -> Iterator[Callable[[], object]]:
    """Mount a disk in memory at a folder; yield a function that makes it large."""
    place.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield partial(_run, "mount", "-o", f"remount,size={ROOM}", str(place))
    finally:
        _run("umount", "--lazy", str(place))


@cache
def _may_mount() -> bool:
    """Tell whether this user may mount a disk in memory."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and Path("/proc/mounts").exists()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
