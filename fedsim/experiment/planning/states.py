"""How far the runs of an experiment are on the disk."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.data.fingerprint import looking_once
from fedsim.experiment.run import rounds_done
from fedsim.experiment.sweep.longer import finished_rounds, shorter_run
from fedsim.experiment.sweep.sweep import Run
from fedsim.results.status import is_running


@dataclass(frozen=True)
class Stage:
    """How far a run is.

    Parameters
    ----------
    text
        For a table.
    kind
        For a count: ``done``, ``running``, ``resumed``, ``continued`` from a shorter run, or ``new``.
    rounds
        Number of rounds that are done.
    """

    text: str
    kind: str
    rounds: int


def stages_of(runs: Sequence[Run]) -> list[Stage]:
    """Return how far each run is, without writing anything."""
    finished = {folder: finished_rounds(folder) for folder in {run.folder.path.parent for run in runs}}
    with looking_once():
        return [_stage(run, finished[run.folder.path.parent]) for run in runs]


def _stage(run: Run, finished: set[int]) -> Stage:
    if run.folder.done.exists():
        return Stage("done", "done", run.config.rounds)
    done = rounds_done(run.folder)
    if is_running(run.folder):
        return Stage(f"running, {done}", "running", done)
    if run.folder.path.exists():
        return Stage(f"round {done}", "resumed", done) if done else Stage("new", "new", 0)
    shorter = shorter_run(run.config, run.folder, finished, accept_versions=run.accept_versions)
    return Stage(f"round {shorter[1]}", "continued", shorter[1]) if shorter else Stage("new", "new", 0)
