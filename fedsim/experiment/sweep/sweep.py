"""The runs of an experiment: checked before the first begins, then run one after the other or in parallel."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fedsim.config import Config, naming
from fedsim.config.choices import CATALOGUES
from fedsim.config.content import Counted, check_unchanged, counted_files
from fedsim.data.fingerprint import looking_once
from fedsim.errors import ConfigError, RunError, about_file
from fedsim.experiment import run as experiment
from fedsim.experiment.beginning import check_versions
from fedsim.experiment.finished import FinishedRun
from fedsim.experiment.rounds import RoundSummary
from fedsim.experiment.run import Parts
from fedsim.experiment.sweep.alike import Alike, check_distinct
from fedsim.experiment.sweep.failure import AGAIN, Failure, cause_of_death, failure_of
from fedsim.experiment.sweep.jobs import Jobs, choose_jobs, processes_that_fit
from fedsim.experiment.sweep.logged import Logged, warnings_to
from fedsim.experiment.sweep.longer import begin_from_shorter, finished_rounds
from fedsim.experiment.sweep.processes import (
    Died,
    Emit,
    Ended,
    Started,
    is_importing_script,
    may_start,
    side_by_side,
    start_server,
)
from fedsim.experiment.sweep.progress import NO_OTHERS, Others, Progress
from fedsim.experiment.tracking.callback import ActiveRun, Callback
from fedsim.experiment.tracking.calls import Calls, custom_callbacks, why_only_here
from fedsim.experiment.tracking.feed import catch_up
from fedsim.federation.engines import check_reachable
from fedsim.federation.engines.grid import processors
from fedsim.results import report
from fedsim.results.faults import faults_of_run
from fedsim.results.folder import RunFolder
from fedsim.results.integrity import check_name, check_run

logger = logging.getLogger(__name__)
Verbosity = Literal["quiet", "normal", "verbose"]


@dataclass(frozen=True)
class Run:
    """A run of an experiment.

    Parameters
    ----------
    name
        What the user sees; no two runs of an experiment have the same.
    config
        Resolved, without a sweep.
    with_page
        Whether a page about it is written.
    files
        What its folder is named by besides the settings.
    accept_versions
        Whether it may resume under other versions of fedsim or a package than those that it was begun with.
    callbacks
        What is called while it runs, besides the callbacks that its config names.
    """

    name: str
    config: Config
    folder: RunFolder
    with_page: bool = True
    files: Sequence[Counted] = ()
    accept_versions: bool = False
    callbacks: Sequence[Callback] = ()

    @property
    def rounds_left(self) -> int:
        """Number of rounds left."""
        return self.config.rounds - experiment.rounds_done(self.folder)

    def active(self) -> ActiveRun:
        """Return what callbacks receive about it."""
        done = experiment.rounds_done(self.folder)
        return ActiveRun(self.name, self.folder.path.parent.name, self.folder.path, self.config, done)

    def results(self) -> FinishedRun:
        """Read its results."""
        return FinishedRun.from_result(report.read_result(self.folder))


OnRound = Callable[[Run, RoundSummary], None]


def name_runs(
    configs: Sequence[Config], out: Path, *, accept_versions: bool = False, callbacks: Sequence[Callback] = ()
) -> list[Run]:
    """Return the runs with these settings, in folders of their own below ``out``.

    Raises
    ------
    ConfigError
        If two of them are the same run.
    """
    with looking_once():
        folders = [RunFolder(out / naming.run_name(config)) for config in configs]
        files = [counted_files(config) for config in configs]
    names = [f"{CATALOGUES['strategies'].label(config.strategy)} seed {config.seed}" for config in configs]
    check_distinct([folder.path.name for folder in folders], names)
    alike = Counter(names)
    return [
        Run(
            f"{name} ({folder.path.name})" if alike[name] > 1 else name,
            config,
            folder,
            files=counted,
            accept_versions=accept_versions,
            callbacks=callbacks,
        )
        for name, config, folder, counted in zip(names, configs, folders, files, strict=True)
    ]


def run_all(
    runs: Sequence[Run],
    asked: int | None = None,
    on_round: OnRound | None = None,
    *,
    others: Others = NO_OTHERS,
    verbosity: Verbosity = "normal",
) -> dict[str, Failure]:
    """Run all runs that are not done yet; one that fails does not stop the others.

    Parameters
    ----------
    asked
        Number of runs in parallel; by default as many as the machine can handle.
    on_round
        Function that is called in this process after each round of a run.
    others
        Runs before or after these, which the progress display counts too.
    verbosity
        Whether only warnings and errors are shown, or all that the runs log.

    Returns
    -------
    failures
        By the name of the run.

    Raises
    ------
    ConfigError
        If a mistake is found before the first run begins; nothing is written then.
    RunError
        If it is interrupted.
    """
    try:
        return _run_all(runs, asked, on_round, others, verbosity)
    except KeyboardInterrupt:
        raise RunError(f"stopped; {AGAIN}") from None


def _run_all(
    runs: Sequence[Run], asked: int | None, on_round: OnRound | None, others: Others, verbosity: Verbosity
) -> dict[str, Failure]:
    if is_importing_script():
        raise ConfigError(
            "a process that the script started itself imports it again, and would run everything twice; put what the "
            "script runs under: if __name__ == '__main__':"
        )
    done = [run for run in runs if run.folder.done.exists()]
    todo = [run for run in runs if not run.folder.done.exists()]
    for run in done:
        check_run(run.folder)
        check_name(run.folder)
    jobs, parts = _prepared(todo, asked) if todo else (None, None)
    notes = list(_begun_from_shorter(todo))
    left = sum(run.rounds_left for run in todo)
    work = partial(run_one, level=logging.INFO if verbosity == "verbose" else logging.WARNING)
    with Progress(len(todo), left, others, quiet=verbosity == "quiet") as progress:
        for run in done:
            progress.say(f"{run.name}: done already, skipped: {run.folder.path}")
            if catch_up(run.active(), run.results):
                progress.say(f"{run.name}: sent the missing rounds to its trackers")
        for note in notes:
            progress.say(note)
        show = _Display(progress, on_round)
        if jobs and len(todo) > 1:
            progress.say(str(jobs))
        if jobs and jobs.count > 1:
            side_by_side(partial(work, workers=jobs.workers), todo, jobs.count, show)
        else:
            _one_after_the_other(work, todo, parts, show)
        return show.failures


def _begun_from_shorter(runs: Sequence[Run]) -> Iterator[str]:
    """Begin runs with the rounds of shorter ones where that is the same; yield a line for each that has such a run."""
    new = [run for run in runs if not run.folder.path.exists()]
    finished = {folder: finished_rounds(folder) for folder in {run.folder.path.parent for run in new}}
    for run in new:
        with looking_once():
            note = begin_from_shorter(
                run.config, run.folder, finished[run.folder.path.parent], accept_versions=run.accept_versions
            )
        if note:
            yield f"{run.name}: {note}"


def _prepared(runs: Sequence[Run], asked: int | None) -> tuple[Jobs, Parts | None]:
    """Check the runs; return how many run in parallel, and the parts of the first if they run one by one."""
    configs, only_here = [run.config for run in runs], why_only_here(runs[0].callbacks)
    jobs = choose_jobs(configs, asked, processors(), can_start=may_start(), only_here=only_here)
    if jobs.count > 1:
        start_server([__name__])  # imports meanwhile what the runs' processes need
    first = check(runs)
    jobs = choose_jobs(configs, asked, processors(), processes_that_fit(), may_start(), only_here)
    # With several, each process builds the parts of its runs.
    return jobs, first if jobs.count == 1 else None


def check(runs: Sequence[Run]) -> Parts:
    """Find every mistake before the first run writes anything; return the parts of the first.

    Those of the others are not kept: together they may be larger than the memory.

    Raises
    ------
    ConfigError
        For the first mistake.
    """
    first, alike = None, Alike()
    with looking_once():
        for run in runs:
            parts = experiment.prepare(run.config)
            alike.add(run.name, run.config, parts[1])
            first = first or parts
            if not run.accept_versions and experiment.rounds_done(run.folder):
                check_versions(run.folder)
            experiment.check_writable(run.folder.path)
    check_reachable(runs[0].config.engine)  # all have the same
    assert first is not None
    for note in alike.notes():
        logger.warning(note)
    return first


def run_one(
    run: Run, emit: Emit, parts: Parts | None = None, workers: int = 0, level: int = logging.WARNING
) -> Failure | None:
    """Complete a run and write its report; return why it failed, if it did.

    Parameters
    ----------
    emit
        Is called with the summary of each round, and with what is logged.
    parts
        What `experiment.prepare` built for this run, if that has been done already.
    workers
        Workers of the engine, instead of the config's, which on disk does not depend on what runs in parallel.
    level
        Lowest level of what is logged to ``emit``.
    """
    if run.folder.done.exists():  # another command has finished it meanwhile
        return None
    try:
        with warnings_to(emit, level), about_file(run.folder.path):
            engine = run.config.engine.model_copy(update={"workers": workers or run.config.engine.workers})
            parts = parts or experiment.prepare(run.config.model_copy(update={"engine": engine}))
            check_unchanged(run.config, run.files)  # now that they have been read
            with Calls(run.active(), [*run.callbacks, *custom_callbacks(run.config)]) as calls:
                on_round, finish = calls.after(emit), partial(_finish, run, calls)
                experiment.run(
                    run.config, run.folder, on_round, parts, accept_versions=run.accept_versions, finish=finish
                )
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return failure_of(error, run.config, run.folder.log)
    return None


def _finish(run: Run, calls: Calls) -> None:
    """Report on a run after its last round, and mark it as complete."""
    for text in faults_of_run(run.folder, experiment.rounds_done(run.folder)):
        logger.warning(text)
    if run.with_page:
        report.write_run(report.read_result(run.folder), run.folder.path)
    calls.end(run.results)
    experiment.complete(run.folder)


def _one_after_the_other(
    work: Callable[..., Failure | None], runs: Sequence[Run], parts: Parts | None, show: Callable[[Run, Any], None]
) -> None:
    """Complete runs in this process; the parts are those of the first."""
    for run in runs:
        show(run, Started())
        failure = work(run, partial(show, run), parts)
        parts = None
        show(run, Ended(failure))


class _Display:
    """Shows the events of runs, and keeps why some failed."""

    def __init__(self, progress: Progress, on_round: OnRound | None) -> None:
        self.failures: dict[str, Failure] = {}
        self._progress = progress
        self._on_round = on_round

    def __call__(self, run: Run, event: Any) -> None:
        match event:
            case Started():
                self._start(run)
            case RoundSummary():
                self._progress.advance(run.name, event)
                if self._on_round:
                    self._on_round(run, event)
            case Logged(level, message):
                self._progress.log(run.name, level, message)
            case Ended(failure):
                self._end(run, failure)
            case Died(exit_code):
                self._end(run, Failure(cause_of_death(exit_code)))

    def _start(self, run: Run) -> None:
        self._progress.start(run.name, run.rounds_left)
        if not run.folder.done.exists() and (done := experiment.rounds_done(run.folder)):
            self._progress.say(f"{run.name}: resuming after round {done}")

    def _end(self, run: Run, failure: Failure | None) -> None:
        self._progress.end(run.name)
        if failure is None:
            self._progress.say(f"{run.name}: done: {run.folder.path}")
            return
        self.failures[run.name] = failure
        if failure.trace:
            self._progress.say(*failure.trace.rstrip().split("\n"))
