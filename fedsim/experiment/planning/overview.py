"""An experiment before it is run: a summary, the settings of all runs, and a table of what differs."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.config import Config, as_toml, choices, naming
from fedsim.config.choices import CATALOGUES
from fedsim.config.experiment_file import Experiment
from fedsim.config.toml import flat
from fedsim.experiment.dry_run import describe_parts
from fedsim.experiment.planning.duration import Earlier, timed_step
from fedsim.experiment.planning.states import Stage, stages_of
from fedsim.experiment.planning.traffic import may_send_sets, planned_traffic
from fedsim.experiment.planning.work import Work, work_of
from fedsim.experiment.run import check_writable, prepare
from fedsim.experiment.sweep.alike import Alike
from fedsim.experiment.sweep.jobs import Jobs, choose_jobs, processes_that_fit
from fedsim.experiment.sweep.processes import may_start
from fedsim.experiment.sweep.sweep import Run, name_runs
from fedsim.experiment.tuning.grid import Tuning, tunings_of
from fedsim.experiment.tuning.tune import FOLDER
from fedsim.federation.engines.grid import processors
from fedsim.federation.participants import participants
from fedsim.results.report.comparing.tables import Table
from fedsim.results.report.comparing.units import format_bytes, format_count, format_duration, how_many
from fedsim.shortening import from_to

logger = logging.getLogger(__name__)
SECTION_LINES = 14  # of a part of a run, of which the others are shown on request
LINE_LENGTH = 240  # of a line with a list, which loses its end
SETS = "sets that a custom method sends, if any"
KINDS = ("done", "running", "resumed", "continued", "new")


@dataclass(frozen=True)
class PlannedRun:
    """A run, how far it is, and its work.

    Parameters
    ----------
    parts
        Lines about each part by its title.
    examples
        Number of training examples of all clients.
    round_seconds
        Seconds of a round, about.
    timed_rounds
        Number of rounds of earlier runs that this is the mean of; 0 for a timed step.
    unplanned
        What of its bytes is not known before training; empty if nothing is.
    """

    run: Run
    stage: Stage
    work: Work
    parts: Mapping[str, Sequence[str]]
    examples: int
    round_seconds: float
    timed_rounds: int
    unplanned: str

    @property
    def seconds_left(self) -> float:
        """Seconds of the rounds that are left, about."""
        return self.round_seconds * max(0, self.run.config.rounds - self.stage.rounds)


@dataclass(frozen=True)
class Overview:
    """An experiment before it is run.

    Parameters
    ----------
    jobs
        How many runs run in parallel; None if none is left.
    """

    experiment: Experiment
    folder: Path
    runs: Sequence[PlannedRun]
    tunings: Sequence[Tuning]
    jobs: Jobs | None


def plan(experiment: Experiment, out: Path, asked: int | None = None, *, accept_versions: bool = False) -> Overview:
    """Build each run without running it.

    Raises
    ------
    ConfigError
        For the first mistake.
    """
    folder = out / experiment.name
    tunings = tunings_of(experiment.config, experiment.source) if experiment.config.tune.is_wanted else []
    runs = name_runs(experiment.configs(), folder, accept_versions=accept_versions)
    earlier, steps = Earlier(folder), dict[str, float]()
    alike = Alike()
    planned = [_planned(run, stage, earlier, steps, alike) for run, stage in zip(runs, stages_of(runs), strict=True)]
    for note in alike.notes():
        logger.warning(note)
    todo = [each.run.config for each in planned if each.stage.kind != "done"]
    jobs = choose_jobs(todo, asked, processors(), processes_that_fit(), may_start()) if todo else None
    return Overview(experiment, folder, planned, tunings, jobs)


def _planned(run: Run, stage: Stage, earlier: Earlier, steps: dict[str, float], alike: Alike) -> PlannedRun:
    federation, strategy = prepare(run.config)
    if stage.kind != "done":
        check_writable(run.folder.path)
    alike.add(run.name, run.config, strategy)
    traffic = planned_traffic(federation, strategy)
    work = work_of(federation, strategy, traffic)
    timed = earlier.seconds_of_round(run.config)
    if timed is None:
        # A step takes as long in each run with this model and these data.
        key = str([run.config.data, run.config.model, run.config.local, run.config.device])
        if key not in steps:
            steps[key] = timed_step(federation)
        workers = min(run.config.engine.workers or processors(), len(participants(run.config, 1)))
        timed = steps[key] * work.passes / run.config.rounds / max(1, workers), 0
    examples = int(federation.data.split.train.sizes.sum())
    parts = describe_parts(federation, strategy, traffic)
    unplanned = ", or ".join(filter(None, [strategy.unplanned, SETS * may_send_sets(strategy)]))
    return PlannedRun(run, stage, work, parts, examples, *timed, unplanned)


def summary(overview: Overview) -> Iterator[str]:
    """Yield how much there is to run, a line for each amount."""
    runs = overview.runs
    config = runs[0].run.config
    rounds = from_to([each.run.config.rounds for each in runs])
    count = f"{how_many(len(runs), 'run')} of {rounds} round{'s' * (rounds != '1')}"
    yield f"{overview.experiment.source}: {count}, in {overview.folder}"
    kinds = Counter(each.stage.kind for each in runs)
    yield f"  runs       {', '.join(f'{kinds[kind]} {kind}' for kind in KINDS if kinds[kind])}"
    if overview.tunings:
        yield f"  tuning     {_tuning(overview)}"
    clients = from_to([each.run.config.clients for each in runs])
    training = from_to([len(participants(each.run.config, 1)) for each in runs])
    examples = from_to([each.examples for each in runs])
    data = config.data.name
    yield f"  clients    {clients}, of which {training} train in each round, on {examples} examples of {data}"
    works = [each.work for each in runs]
    yield f"  examples   {format_count(sum(work.examples for work in works))} trained on, counted once per epoch"
    down = [work.down for work in works if work.down is not None]
    known = f"{format_bytes(sum(down))} down" if len(down) == len(works) else "those down not known before the run"
    kinds_of_bytes = {work.of_bytes for work in works}
    rough = "about " if "about" in kinds_of_bytes else "at most " if "at most" in kinds_of_bytes else ""
    yield f"  bytes      {rough}{format_bytes(sum(work.up for work in works))} up, {known}{_open(overview)}"
    yield f"  time       {_time(overview)}"


def _open(overview: Overview) -> str:
    """Return what of the bytes follows from training, in how many of the runs."""
    runs = overview.runs
    reasons = [each.unplanned for each in runs if each.unplanned]
    count = f" in {len(reasons)} of {len(runs)} runs" if len(runs) > 1 else ""
    return f"; not known before the run{count}: {', or '.join(dict.fromkeys(reasons))}" if reasons else ""


def _tuning(overview: Overview) -> str:
    candidates = [candidate for tuning in overview.tunings for candidate in tuning.candidates]
    rounds = from_to([candidate.config.rounds for candidate in candidates])
    done = sum((overview.folder / FOLDER / naming.run_name(each.config) / "DONE").exists() for each in candidates)
    already = f", {done} of them done" if done else ""
    return f"{len(candidates)} runs of {rounds} rounds before these{already}; included below in time only"


def _tuning_seconds(overview: Overview) -> float:
    """Return the seconds of tuning, whose rounds are taken to last as long as those of the run that they are for."""
    of_run = {each.run.folder.path.name: each.round_seconds for each in overview.runs}
    return sum(
        of_run[naming.run_name(choices.resolve(tuning.configs[0]))] * candidate.config.rounds
        for tuning in overview.tunings
        for candidate in tuning.candidates
        if not (overview.folder / FOLDER / naming.run_name(candidate.config) / "DONE").exists()
    )


def _time(overview: Overview) -> str:
    seconds = sum(each.seconds_left for each in overview.runs) + _tuning_seconds(overview)
    if not seconds or overview.jobs is None:
        return "none, all runs are done"
    todo = [each for each in overview.runs if each.seconds_left]
    timed, count = sum(each.timed_rounds for each in todo), overview.jobs.count
    by_step = sum(not each.timed_rounds for each in todo)
    # Runs in parallel share the processors on which a step was timed.
    at_once = f" with {count} runs at a time" if count > 1 else ""
    left = sum(each.seconds_left / (1 if not each.timed_rounds else count) for each in todo)
    left += _tuning_seconds(overview) / (count if timed else 1)
    bases = [f"{timed} rounds of earlier runs"] * bool(timed)
    bases += [f"timed steps of one client{f' ({by_step} runs)' if timed else ''}"] * bool(by_step)
    rough = "" if timed and not by_step else ", a rough guess"
    return f"about {format_duration(left)}{at_once}, by {' and '.join(bases)}{rough}"


def shared_settings(overview: Overview) -> Iterator[str]:
    """Yield the settings that all runs have in common, except defaults, and how many of these there are."""
    written = [_changed(each.run.config) for each in overview.runs]
    complete = [flat(each.run.config.model_dump(mode="json")) for each in overview.runs]
    shared = {key: value for key, value in written[0].items() if all(each.get(key) == value for each in complete)}
    yield from (f"{key} = {as_toml(value)}" for key, value in shared.items())
    varied = {key for each in written for key in each} - shared.keys()
    yield f"({len(complete[0].keys() - shared.keys() - varied)} others have their defaults: --verbose)"


def _changed(config: Config) -> dict[str, Any]:
    every = flat(config.model_dump(mode="json", exclude_defaults=True, exclude={"sweep", "tune", "expect"}))
    recorded = flat(naming.recorded_settings(config))
    names = {f"{each.table}.{each.key}": getattr(getattr(config, each.table), each.key) for each in CATALOGUES.values()}
    tables = {catalogue.table for catalogue in CATALOGUES.values()}
    changed = {key: value for key, value in every.items() if key.partition(".")[0] not in tables or key in recorded}
    return {"seed": config.seed} | names | changed


def runs_table(overview: Overview) -> Table:
    """Return a row for each run with what differs."""
    runs = overview.runs
    complete = [flat(each.run.config.model_dump(mode="json")) for each in runs]
    varied = [
        key
        for key in dict.fromkeys(key for each in complete for key in each)
        if key != "seed" and not key.startswith("strategy.") and len({str(each.get(key)) for each in complete}) > 1
    ]
    rows = tuple(
        (
            CATALOGUES["strategies"].label(each.run.config.strategy),
            *(str(settings.get(key, "-")) for key in varied),
            str(each.run.config.seed),
            each.stage.text,
            each.run.folder.path.name,
            format_count(each.work.examples),
            _sent(each.work, each.work.up),
            _sent(each.work, each.work.down),
            format_duration(each.seconds_left) if each.seconds_left else "-",
        )
        for each, settings in zip(runs, complete, strict=True)
    )
    headings = ("strategy", *varied, "seed", "state", "run", "examples", "up", "down", "time left")
    numeric = (*[False] * (1 + len(varied)), *[True] * 7)
    return Table(headings, numeric, rows, (), (*[0] * (2 + len(varied)), 1, 4, 6, 2, 5, 3))


def _sent(work: Work, count: int | None) -> str:
    rough = "" if work.of_bytes == "exact" else f"{work.of_bytes} "
    return "-" if count is None else f"{rough}{format_bytes(count)}"


def shared_parts(overview: Overview) -> Iterator[str]:
    """Yield the parts that all runs have in common, of long ones the beginning, and the titles of the others."""
    first, others = overview.runs[0].parts, [each.parts for each in overview.runs[1:]]
    differing = []
    for title, lines in first.items():
        if any(each[title] != lines for each in others):
            differing.append(title.partition(":")[0])
        elif lines:
            yield f"# {title}"
            yield from map(_shortened, lines[:SECTION_LINES])
            if (more := len(lines) - SECTION_LINES) > 0:
                yield f"(and {how_many(more, 'more line')}: --verbose)"
    if differing:
        yield f"# different by run: {', '.join(differing)} (--verbose)"


def _shortened(line: str) -> str:
    """Return a line without the end of the long list with which it ends."""
    if len(line) <= LINE_LENGTH:
        return line
    kept = line[: LINE_LENGTH + 1].rpartition(", ")[0]
    more = line.count(", ", len(kept))
    return f"{kept} and {more} more (--verbose)" if kept else line
