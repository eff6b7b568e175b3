"""What a case gives: how much was tried, and what went wrong; and what all of them check of a command that ended."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from benchmarks.soak.folders import contents, difference, run_folder
from benchmarks.soak.forked import Ended, fedsim_command
from benchmarks.soak.moments import Counter as Changes
from benchmarks.soak.moments import Moment
from benchmarks.soak.studies import Study

TOLD = 5  # last lines of a traceback that are told
LONGEST = 300 + len("fedsim: error: ")  # letters of an error's line


@dataclass
class Tried:
    """What became of a case.

    Parameters
    ----------
    counts
        How many of what were tried, such as kills.
    failures
        What went wrong, a line or more each.
    kinds
        What the counts are over, such as strategies; the number of different ones is reported.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    kinds: dict[str, set[str]] = field(default_factory=dict)

    def check(self, problem: str, where: str = "") -> bool:
        """Note a problem, if there is one; return whether there is none."""
        if problem:
            self.failures.append(f"{where}: {problem}" if where else problem)
        return not problem

    def kind(self, name: str, value: str) -> None:
        """Note over what something was tried."""
        self.kinds.setdefault(name, set()).add(value)

    def add(self, other: "Tried") -> None:
        """Add another case's."""
        self.counts += other.counts
        self.failures += other.failures
        for name, values in other.kinds.items():
            self.kinds.setdefault(name, set()).update(values)


@dataclass(frozen=True)
class Whole:
    """A run that nothing happened to.

    Parameters
    ----------
    files
        Contents of its folder.
    changes
        Number of changes of files that it made.
    largest
        Bytes of its largest file.
    """

    files: dict[str, bytes]
    seconds: float
    changes: int
    largest: int


@cache
def whole_run(study: Study, scratch: Path) -> Whole:
    """Run a study without any disturbance; each is run once.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    folder = scratch / "whole" / study.name
    study.write(folder)
    changes = Changes()
    ended = fedsim_command(study.command, folder, Moment(0, lambda: None, counter=changes))
    run = run_folder(folder)
    if ended.code or not run:
        raise RuntimeError(f"{study.name} failed without any disturbance: {ended.err}")
    files = contents(run)
    return Whole(files, ended.seconds, changes.value, max(map(len, files.values())))


def problem_of(ended: Ended) -> str:
    """Return what is wrong with how a command ended that may fail, but only in a line; empty if nothing is."""
    errors = [line for line in ended.err.splitlines() if "error: " in line]
    if "Traceback" in ended.err:
        return (
            f"{ended.command} gave a traceback: ... {' | '.join(ended.err.split('Traceback')[-1].splitlines()[-TOLD:])}"
        )
    if ended.code not in (0, 1, 2):
        return f"{ended.command} ended with exit code {ended.code}: {ended.err.rstrip()}"
    if ended.code and len(errors) != 1:
        return f"{ended.command} failed with {len(errors)} lines that say why: {ended.err.rstrip()}"
    if ended.code and len(errors[0]) > LONGEST:
        return f"{ended.command} failed with a line of {len(errors[0])} letters: {errors[0]}"
    return ""


def problem_of_result(folder: Path, study: Study, scratch: Path) -> str:
    """Return where the run in a folder differs from one that nothing happened to."""
    run = run_folder(folder)
    return difference(contents(run), whole_run(study, scratch).files) if run else "there is no run"


def left_in(folder: Path) -> str:
    """Return the temporary files that commands have left, in words."""
    left = sorted(path.name for path in (folder / "temporary").glob("*"))
    return f"left temporary files: {', '.join(left[:4])}" if left else ""
