"""What Python users and the command line call: run, load and compare experiments, measure barriers, split data."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from fedsim import analysis
from fedsim.analysis.arguments import check_list
from fedsim.config import naming
from fedsim.config.config import Config
from fedsim.config.content import uncounted_files
from fedsim.config.experiment_file import Experiment, read_experiment, read_overrides
from fedsim.console import PlainConsole
from fedsim.errors import ConfigError, RunError
from fedsim.experiment.finished import Comparison, FinishedRun, Partition, Round, Runs
from fedsim.experiment.sweep import sweep
from fedsim.experiment.sweep.failure import Failure
from fedsim.experiment.tracking.callback import ActiveRun, Callback, callback_of
from fedsim.experiment.tracking.calls import check_calls, round_of
from fedsim.experiment.tuning import tune
from fedsim.experiment.tuning.grid import tunings_of
from fedsim.federation.data import federated_data_of
from fedsim.models.frozen import frozen_keys
from fedsim.models.params import Params
from fedsim.models.saved import find_weights, read_checkpoint
from fedsim.results.folder import RunFolder
from fedsim.results.integrity import check_file_of_checkpoint
from fedsim.results.reading import find_runs, read_results
from fedsim.results.report.comparing import comparison as comparing
from fedsim.results.report.comparing.costs import SMOOTH
from fedsim.results.report.comparing.question import Question, read_budgets
from fedsim.results.report.comparing.tables import chosen_columns

logger = logging.getLogger(__name__)
Settings = str | Path | Mapping[str, Any]
Paths = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class Outcome:
    """The outcome of an experiment's runs.

    Parameters
    ----------
    done
        Folders of the runs that are complete.
    failures
        Why others failed, by name.
    runs
        Number of all runs.
    """

    done: Sequence[RunFolder]
    failures: Mapping[str, Failure]
    runs: int


def run(
    settings: Settings,
    overrides: Mapping[str, Any] | None = None,
    *,
    on_round: Callable[[Round], None] | None = None,
    callbacks: Sequence[Callback | Callable[[ActiveRun, Round], None]] = (),
    out: str | Path = "runs",
    jobs: int | None = None,
    engine: Literal["local", "ray"] | None = None,
    name: str | None = None,
    accept_versions: bool = False,
) -> Runs:
    """Run an experiment, resume it where it was interrupted, and read the results of all its runs.

    Parameters
    ----------
    settings
        Path of a TOML file, or a dict of the same settings.
    overrides
        Values by dotted setting, such as ``{"strategy.shared": "head", "rounds": 5}``; they have the last word.
    on_round
        Function that is called in this process after each round of each run.
    callbacks
        Objects of `fedsim.Callback`, or functions of a run and a round that are called after each round: in the process
        of the run, each of which has its own copies of them if several run in parallel.
    out
        Output directory; the runs go into a subdirectory.
    jobs
        Number of runs in parallel, each in a process; by default as many as the machine can handle.
    engine
        Where the clients run.
    name
        Name of the subdirectory: by default that of the file, or ``experiment``.
    accept_versions
        Whether runs may resume under other versions of fedsim, Python or a package than those that wrote their rounds.

    Raises
    ------
    ConfigError
        If a setting is wrong, before anything is written.
    RunError
        If a run failed; the others are done, and the same call resumes it.
    """
    if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
        raise ConfigError(f"jobs = {jobs!r} must be a whole number of at least 1")
    if on_round is not None and not callable(on_round):
        raise ConfigError(f"on_round = {on_round!r} must be a function that takes a round")
    called = _callbacks(callbacks)
    if name is not None and (Path(name).name != name or name == ".."):
        raise ConfigError(f"name = {name!r} must be a folder's name, without a path; set the path with out")
    changes = read_overrides(overrides or {}) | ({} if engine is None else {("engine", "name"): engine})
    experiment = read_experiment(settings, changes, name)
    outcome = run_experiment(experiment, Path(out), jobs, on_round, callbacks=called, accept_versions=accept_versions)
    if outcome.failures:
        listed = "; ".join(f"{name}: {failure.message}" for name, failure in outcome.failures.items())
        kind = ConfigError if all(each.wrong_config for each in outcome.failures.values()) else RunError
        raise kind(f"{len(outcome.failures)} of {outcome.runs} runs failed: {listed}")
    return Runs(map(FinishedRun.from_result, read_results(outcome.done)))


def run_experiment(
    experiment: Experiment,
    out: Path,
    jobs: int | None = None,
    on_round: Callable[[Round], None] | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    accept_versions: bool = False,
    verbosity: sweep.Verbosity = "normal",
) -> Outcome:
    """Tune what is to be tuned, then run all runs of an experiment that are not done; one that fails stops no other.

    What tuning chose is printed to stderr, unless the verbosity is ``quiet``.

    Raises
    ------
    ConfigError
        If a mistake is found before the first run begins.
    RunError
        If it is interrupted.
    """
    config, source, folder = experiment.config, experiment.source, out / experiment.name
    check_calls(config)
    tunings = tunings_of(config, source) if config.tune.is_wanted else []
    tuned = tune.Tuned(experiment.configs())
    if tunings:
        tuned = tune.tune(tunings, folder, source, jobs, accept_versions=accept_versions, verbosity=verbosity)
    for note in tuned.notes if verbosity != "quiet" else ():
        PlainConsole(stderr=True).print(note, soft_wrap=True)
    runs = sweep.name_runs(tuned.configs, folder, accept_versions=accept_versions, callbacks=callbacks)
    for place in dict.fromkeys(place for config in tuned.configs for place in uncounted_files(config)):
        logger.warning("code names %s, whose content does not name the run; if it reads it, make it an option", place)
    tune.take_from_tuning(runs, folder)
    called = on_round and _with_name(on_round)
    failures = dict(tuned.failures) | sweep.run_all(runs, jobs, called, others=tuned.others, verbosity=verbosity)
    done = [run.folder for run in runs if run.folder.done.exists()]
    return Outcome(done, failures, len(runs) + len(tuned.failures))


def load(paths: Paths) -> Runs:
    """Read the results of runs.

    Parameters
    ----------
    paths
        Folders of runs or of experiments: one, or several.

    Raises
    ------
    ConfigError
        If a path holds no run, or none has an evaluated round yet.
    """
    return Runs(map(FinishedRun.from_result, read_results(find_runs(_paths(paths)))))


def compare(
    runs: Runs | Iterable[FinishedRun] | Paths,
    *,
    metric: str = "accuracy",
    by: str | None = None,
    at: Literal["last", "best"] = "last",
    baseline: str | None = None,
    budget: str | Iterable[str] = (),
    target: float | None = None,
    smooth: int = SMOOTH,
    unfinished: bool = False,
    correct: Literal["holm"] | None = None,
    columns: str | Iterable[str] | None = None,
) -> Comparison:
    """Compare runs in one table, seeds together.

    Parameters
    ----------
    runs
        Results, or paths as `load` takes them.
    metric
        What is compared: a name in `fedsim.training.metrics.METRICS`.
    by
        Dotted setting to group by, such as ``strategy.name``: by default all settings except the seed.
    at
        The last round, or the best one on the clients' validation data.
    baseline
        Baseline runs, a strategy or ``SETTING=VALUE``; gains are paired by partition and seed. ``best:layer_set`` or
        ``best:FedPer,LG-FedAvg`` is the best of several methods on validation data, in each setting.
    budget
        Amounts at which values are compared, such as ``bytes=50MB`` or ``passes=1M``.
    target
        Mean personalised value on validation data; the rounds, bytes and passes needed to reach it are reported.
    smooth
        Number of evaluations whose mean is compared with the target; 1 for the value of a single round.
    unfinished
        Whether runs that are not finished are compared too, all at the last round that they have in common. By default
        they are left out.
    correct
        Correction of the p-values for the number of comparisons: Holm's, or none.
    columns
        Names of columns, as a list or with commas between them, or ``all``; by default the text has the compact ones,
        and ``table`` and ``csv`` have all.

    Raises
    ------
    ConfigError
        If there is no such run, setting, baseline or column, or no run is finished.
    """
    results = results_of(runs)
    if not isinstance(columns, str | None):
        columns = ",".join(columns)
    budgets = read_budgets([budget] if isinstance(budget, str) else budget)
    question = Question(metric, by, at, baseline, budgets, target, unfinished, correct, smooth)
    compared = comparing.compare(results, question)
    return Comparison.of(compared, None if columns is None else chosen_columns(compared, columns))


def barriers(model: Any, states: Any, *arguments: Any, **options: Any) -> Any:
    """Measure the layer-wise barriers between models; see `fedsim.analysis.barriers`, which gets all arguments.

    Parameters
    ----------
    model
        A torch module.
    states
        Its weights, at least two: state dicts, or paths of checkpoints. Both may have a prefix before all keys, as
        `torch.compile` and others write it, and be of another floating-point type than the model, to which they are
        converted.
    """
    if isinstance(model, nn.Module):
        check_list(states)
        states = [_state(each, model) for each in states]
    return analysis.barriers(model, states, *arguments, **options)


def partition(settings: Settings, overrides: Mapping[str, Any] | None = None) -> Partition:
    """Split an experiment's data across its clients, without training.

    Parameters
    ----------
    settings, overrides
        As in `run`; of a sweep, all runs must have the same partition.

    Raises
    ------
    ConfigError
        If a setting is wrong, the data are missing, or runs have several partitions.
    """
    experiment = read_experiment(settings, read_overrides(overrides or {}))
    configs = list(partitions_of(experiment).values())
    if len(configs) > 1:
        raise ConfigError(f"{experiment.source} [sweep] has {len(configs)} partitions; choose one with overrides")
    return Partition(federated_data_of(configs[0]))


def partitions_of(experiment: Experiment) -> dict[str, Config]:
    """Return a config for each partition of an experiment's runs, by the partition's name."""
    return {naming.partition_name(config): config for config in experiment.configs()}


def _with_name(on_round: Callable[[Round], None]) -> sweep.OnRound:
    return lambda run, summary: on_round(round_of(run.name, summary))


def _callbacks(given: Any) -> list[Callback]:
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise ConfigError(f"callbacks = {given!r} must be a list of callbacks")
    return [callback_of(each) for each in given]


def _paths(paths: Paths) -> list[Path]:
    if not isinstance(paths, str | Path | Iterable):
        raise ConfigError(f"paths = {paths!r} must be a path, or a list of paths")
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(each) for each in paths]


def results_of(runs: Iterable[Any] | str | Path) -> Sequence[FinishedRun]:
    """Return results as they are, and those of paths read.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if isinstance(runs, str | Path):
        return load(runs)
    given = list(runs)
    if not given:
        raise ConfigError("there are no runs to compare; give results or paths")
    return [result for each in given for result in ([each] if isinstance(each, FinishedRun) else load(each))]


def _state(state: str | Path | Params, model: nn.Module) -> Mapping[str, Tensor]:
    device, name = next(model.parameters()).device, type(model).__name__
    if isinstance(state, str | Path):
        check_file_of_checkpoint(Path(state))
        read = read_checkpoint(Path(state), model, name)
    elif not isinstance(state, Mapping) or _is_plain(state, model):
        return state
    else:
        read = find_weights(state, model, name, "a state")
    return {key: value.to(device) for key, value in read.items()}


def _is_plain(state: Mapping[Any, Any], model: nn.Module) -> bool:
    """Whether a state has tensors under the model's keys, of which frozen ones may be missing."""
    own = model.state_dict().keys()
    is_complete = own - frozen_keys(model) <= state.keys() <= own
    return is_complete and all(isinstance(value, Tensor) for value in state.values())
