"""Settings chosen on validation data, for each combination of a sweep by itself, before its runs (``[tune]``)."""

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.config import Config, naming
from fedsim.config.track import TrackConfig
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.sweep.failure import Failure
from fedsim.experiment.sweep.progress import NO_OTHERS, Others
from fedsim.experiment.sweep.sweep import Run, Verbosity, name_runs, run_all
from fedsim.experiment.tuning.grid import Tuning, format_settings
from fedsim.results import report
from fedsim.results.files import copy_writable, write_folder
from fedsim.results.folder import RunFolder
from fedsim.results.report.comparing.units import how_many
from fedsim.results.result import Result
from fedsim.results.seals import write_sealed
from fedsim.results.tuning import CHOICES, edges, is_tie, off_centre, read_choices
from fedsim.training.metrics import MAIN, format_metric, label, metric_of

FOLDER = "tuning"  # of the runs among which is chosen, below the experiment's


@dataclass(frozen=True)
class Score:
    """How a candidate did on the clients' validation data.

    Parameters
    ----------
    value
        Mean over the clients of the personalised models of ``metric``, in the round by which is chosen; NaN if the
        models diverged, or values of clients are missing in its last round.
    round
        That round; None if there is none.
    missing
        Number of clients without a value in its last round.
    left_out
        Number of updates that are in no average.
    metric
        Name of the metric.
    """

    value: float
    round: int | None
    missing: int = 0
    left_out: int = 0
    metric: str = MAIN

    @property
    def goodness(self) -> float:
        """The value, with a minus sign where a lower one is better."""
        return self.value if metric_of(self.metric).higher_is_better else -self.value


@dataclass(frozen=True)
class Tuned:
    """What tuning chose.

    Parameters
    ----------
    configs
        Resolved configs of the runs.
    failures
        Why nothing was chosen for some, by the name of the run that failed.
    notes
        What was chosen, a line each.
    others
        The runs that tuning has run.
    """

    configs: Sequence[Config]
    failures: Mapping[str, Failure] = field(default_factory=dict)
    notes: Sequence[str] = ()
    others: Others = NO_OTHERS


def tune(
    tunings: Sequence[Tuning],
    out: Path,
    source: str,
    jobs: int | None = None,
    *,
    accept_versions: bool = False,
    verbosity: Verbosity = "normal",
) -> Tuned:
    """Run all candidates that are not done yet and choose among them; the choice is in ``out/tuning.json``.

    Raises
    ------
    ConfigError
        If a mistake is found before the first run begins, or a run has no values on validation data.
    RunError
        If it is interrupted.
    """
    runs = _runs(tunings, out / FOLDER, accept_versions=accept_versions)
    _check_partitions(tunings)
    todo = [run for run in runs.values() if not run.folder.done.exists()]
    tuned = Others(len(todo), sum(run.rounds_left for run in todo), done=True)
    failures = run_all(list(runs.values()), jobs, others=_runs_after(tunings), verbosity=verbosity)
    diverged = {name for name, failure in failures.items() if failure.diverged}
    configs: list[Config] = []
    notes: list[str] = []
    choices: list[dict[str, Any]] = []
    for tuning in tunings:
        own = [runs[naming.run_name(candidate.config)] for candidate in tuning.candidates]
        if any(run.name in failures and run.name not in diverged for run in own):
            continue
        scores = [
            Score(math.nan, None) if run.name in diverged else score_of(report.read_result(run.folder), tuning)
            for run in own
        ]
        best = best_of(scores, [candidate.values for candidate in tuning.candidates])
        chosen = [] if best is None else tuning.chosen(tuning.candidates[best].values, source)
        choices.append(_record(tuning, own, scores, best) | {"for": [*map(naming.run_name, chosen)]})
        notes += notes_of(tuning, scores, best)
        configs += chosen
    _write_choices(out / CHOICES, choices)
    failed = {name: failure for name, failure in failures.items() if name not in diverged}
    return Tuned(configs, failed | _diverged(choices), notes, tuned)


def _runs_after(tunings: Sequence[Tuning]) -> Others:
    """Return the runs that follow: one for each seed, except that of a candidate that stays."""
    ahead = [config for tuning in tunings for config in tuning.configs[1 if tuning.candidates[0].stays else 0 :]]
    return Others(len(ahead), sum(config.rounds for config in ahead))


def best_of(scores: Sequence[Score], values: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the index of the best score; None if all diverged.

    Of equal scores it is one with the fewest updates left out, of these the one closest to the middle of the grid, and
    of these the first: the order of the lists favours no edge.
    """
    known = [index for index, score in enumerate(scores) if not math.isnan(score.value)]
    if not known:
        return None
    best = max(known, key=lambda index: scores[index].goodness)
    ties = [index for index in known if is_tie(scores[index].value, scores[best].value)]
    return min(ties, key=lambda index: (scores[index].left_out, off_centre(values[index], values), index))


def take_from_tuning(runs: Sequence[Run], out: Path) -> None:
    """Copy tuning runs that are runs of the experiment too, so that none is run twice."""
    for run in runs:
        tuned = RunFolder(out / FOLDER / run.folder.path.name)
        if not tuned.done.exists() or run.folder.path.exists():
            continue
        with write_folder(run.folder.path) as copy:
            copy_writable(tuned.path, copy, ignore=shutil.ignore_patterns(".lock"))


def _runs(tunings: Sequence[Tuning], folder: Path, *, accept_versions: bool) -> dict[str, Run]:
    """Return the runs of all candidates by the names of their folders; only those that stay have a page."""
    candidates = [(tuning, candidate) for tuning in tunings for candidate in tuning.candidates]
    runs = name_runs([candidate.config for _, candidate in candidates], folder)
    names = [f"tuning {tuning.label}, {format_settings(candidate.values)}" for tuning, candidate in candidates]
    alike = Counter(names)
    return {
        run.folder.path.name: Run(
            # Failures are kept by name.
            f"{name} ({run.folder.path.name})" if alike[name] > 1 else name,
            # Trackers show the experiment's runs only.
            run.config.model_copy(update={"track": TrackConfig(), "callbacks": ()}),
            run.folder,
            with_page=candidate.stays,
            files=run.files,
            accept_versions=accept_versions,
        )
        for run, name, (_, candidate) in zip(runs, names, candidates, strict=True)
    }


def _check_partitions(tunings: Sequence[Tuning]) -> None:
    """Find a mistake in the data of any seed before the first run begins."""
    configs = [each for tuning in tunings for each in tuning.chosen(tuning.candidates[0].values, FOLDER)]
    checked = {naming.partition_name(candidate.config) for tuning in tunings for candidate in tuning.candidates}
    others = {naming.partition_name(config): config for config in configs}
    for name, config in others.items():
        if name not in checked:
            experiment.prepare(config)


def score_of(result: Result, tuning: Tuning) -> Score:
    """Return the mean on validation data in the round whose mean on test data a comparison shows.

    Raises
    ------
    ConfigError
        If there are no validation data.
    """
    metric = result.meant(tuning.metric)
    means = result.mean_by_round("personalised", metric, "validation")
    if means.empty:
        raise ConfigError(f"{result.folder.path} has no values of {metric} on validation data, by which [tune] chooses")
    last = int(means.index[-1])
    chosen = result.best_round(metric) if tuning.at == "best" else last
    # What was better before it diverged would not be what the runs end with.
    missing = int(result.by_client("personalised", metric, split="validation", server_round=last).isna().sum())
    if missing or chosen is None:
        return Score(math.nan, None, missing, result.left_out, metric)
    return Score(float(means.loc[chosen]), chosen, left_out=result.left_out, metric=metric)


def _record(tuning: Tuning, runs: Sequence[Run], scores: Sequence[Score], best: int | None) -> dict[str, Any]:
    config = tuning.candidates[0].config
    return {
        "key": tuning.key,
        "runs": tuning.label,
        "seed": config.seed,
        "rounds": config.rounds,
        "at": tuning.at,
        "chosen": None if best is None else dict(tuning.candidates[best].values),
        "scores": [
            {
                "values": dict(candidate.values),
                f"validation_{score.metric}": None if math.isnan(score.value) else score.value,
                "round": score.round,
                "run": f"{FOLDER}/{run.folder.path.name}",
            }
            for candidate, run, score in zip(tuning.candidates, runs, scores, strict=True)
        ],
    }


def _write_choices(path: Path, choices: Sequence[Mapping[str, Any]]) -> None:
    """Write what was chosen; what another sweep of the same experiment chose stays."""
    by_key = {choice["key"]: choice for choice in [*read_choices(path), *choices]}
    write_sealed(path, {"choices": list(by_key.values())})


def notes_of(tuning: Tuning, scores: Sequence[Score], best: int | None) -> Iterator[str]:
    """Yield what the user should know: which values failed, which was chosen, and whether the grid is too narrow."""
    for candidate, score in zip(tuning.candidates, scores, strict=True):
        if math.isnan(score.value):
            lost = f"the last round has no {label(score.metric)} of {how_many(score.missing, 'client')}"
            what = lost if score.missing else "the models diverge"
            yield f"tuning {tuning.label}: {what} with {format_settings(candidate.values)}"
    if best is None:
        return
    values = tuning.candidates[best].values
    text = f"tuning {tuning.label}: {format_settings(values)}, validation {label(scores[best].metric)} "
    yield text + format_metric(scores[best].metric, scores[best].value)
    tried = [(candidate.values, score.value) for candidate, score in zip(tuning.candidates, scores, strict=True)]
    for edge in edges(values, tried):
        yield f"tuning {tuning.label}: {edge} is at the edge of its grid; a wider one may be better"


def _diverged(choices: Sequence[Mapping[str, Any]]) -> dict[str, Failure]:
    """Return a failure for each combination of which all candidates diverged."""
    why = "the models diverge with all values of [tune]; try others, such as smaller learning rates"
    return {f"tuning {choice['runs']}": Failure(why) for choice in choices if choice["chosen"] is None}
