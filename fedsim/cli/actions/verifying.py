"""``fedsim verify``: whether the folders of runs are whole, and whether rounds give the same bytes again."""

from collections.abc import Sequence
from pathlib import Path

from fedsim.cli.terminal import print_lines, say
from fedsim.experiment.sweep.logged import warnings_to
from fedsim.experiment.verifying.replay import Replay, replay
from fedsim.experiment.verifying.verify import Verdict
from fedsim.experiment.verifying.verify import verify as verify_run
from fedsim.results.reading import find_runs


def verify(paths: Sequence[Path], rounds: int | None) -> bool:
    """Print what is found in each run; return whether all are whole, and rounds that are run again have equal bytes."""
    is_good = True
    for folder in find_runs(paths):
        verdict = verify_run(folder)
        _print_verdict(verdict)
        is_good &= verdict.is_whole
        if rounds is not None and verdict.is_whole:
            say(f"running {rounds} rounds of {folder.path} again")
            with warnings_to(lambda logged: say(logged.message)):
                found = replay(folder, rounds)
            _print_replay(found)
            is_good &= found.difference is None
    return is_good


def _print_verdict(verdict: Verdict) -> None:
    print_lines(f"{'whole' if verdict.is_whole else 'DAMAGED':9}{verdict.folder.path}: {verdict.summary}")
    print_lines(*(f"         {problem}" for problem in verdict.problems))
    print_lines(*(f"         {note}" for note in verdict.notes))


def _print_replay(found: Replay) -> None:
    rounds = f"round {found.first}" if found.first == found.last else f"rounds {found.first} to {found.last}"
    if found.difference is None:
        what = f"records and the checkpoint of round {found.last}" if found.has_checkpoint else "records"
        print_lines(f"{'same':9}{rounds} run again: {what} are equal, byte for byte")
    else:
        print_lines(f"{'DIFFERS':9}{rounds} run again, first in {found.difference}")
    print_lines(*(f"         {note}" for note in found.notes))
