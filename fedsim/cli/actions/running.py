"""``fedsim run``: runs an experiment, or shows what would be run."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from fedsim.cli.terminal import print_error, print_lines, print_table, print_texts, say
from fedsim.config.experiment_file import Experiment
from fedsim.experiment import api
from fedsim.experiment.dry_run import describe_run
from fedsim.experiment.sweep.failure import Failure
from fedsim.experiment.sweep.sweep import Verbosity, name_runs
from fedsim.experiment.tuning.grid import describe_tuning, tunings_of


def run(
    experiment: Experiment,
    out: Path,
    jobs: int | None,
    *,
    accept_versions: bool = False,
    verbosity: Verbosity = "normal",
) -> int:
    """Run an experiment and print its answer and table; return the exit code."""
    outcome = api.run_experiment(experiment, out, jobs, accept_versions=accept_versions, verbosity=verbosity)
    if outcome.done:
        more = f"fedsim compare {shlex.quote(str(out / experiment.name))} --columns all"
        compared = api.compare([folder.path for folder in outcome.done])
        print_texts(*compared.verdict.lines)
        print_table(compared.text, more=more)
    if verbosity != "quiet":
        say(f"runs: {out / experiment.name}")
    _print_failures(outcome.failures, outcome.runs)
    if not outcome.failures:
        return 0
    return 2 if all(failure.wrong_config for failure in outcome.failures.values()) else 1


def show(experiment: Experiment) -> None:
    """Print what would be run."""
    if experiment.config.tune.is_wanted:
        print_lines(*describe_tuning(tunings_of(experiment.config, experiment.source)).split("\n"))
    configs = experiment.configs()
    name_runs(configs, Path())  # refuses a run that would be there twice
    for config in configs:
        print_lines(*describe_run(config).split("\n"))


def _print_failures(failures: Mapping[str, Failure], runs: int) -> None:
    if failures and runs > 1:
        print_error(f"{len(failures)} of {runs} runs failed; rerun the same command to retry")
    for name, failure in failures.items():
        print_error(f"{name}: {failure.message}" if runs > 1 else failure.message)
