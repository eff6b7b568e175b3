"""``fedsim run``: runs an experiment, or shows what would be run."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from fedsim.cli.terminal import print_error, print_lines, print_table, print_texts, say
from fedsim.config.experiment_file import Experiment
from fedsim.experiment import api
from fedsim.experiment.dry_run import describe_run
from fedsim.experiment.planning.overview import plan, runs_table, shared_parts, shared_settings, summary
from fedsim.experiment.sweep.failure import Failure
from fedsim.experiment.sweep.sweep import Verbosity
from fedsim.experiment.tracking.calls import check_calls
from fedsim.experiment.tuning.grid import describe_tuning


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


def show(
    experiment: Experiment, out: Path, jobs: int | None, *, verbose: bool = False, accept_versions: bool = False
) -> None:
    """Print what would be run: a summary, the settings of all runs, and what differs by run."""
    check_calls(experiment.config)
    overview = plan(experiment, out, jobs, accept_versions=accept_versions)
    print_lines(*summary(overview), "")
    if overview.tunings:
        print_lines(*describe_tuning(overview.tunings).split("\n"))
    if verbose:
        if len(overview.runs) > 1:
            print_table(runs_table(overview))
        for each in overview.runs:
            print_lines(*describe_run(each.run.config).split("\n"))
        return
    print_lines("# settings" if len(overview.runs) == 1 else "# settings of all runs", *shared_settings(overview), "")
    if len(overview.runs) > 1:
        print_lines("# runs")
        print_table(runs_table(overview), more="--verbose")
    print_lines(*shared_parts(overview))


def _print_failures(failures: Mapping[str, Failure], runs: int) -> None:
    if failures and runs > 1:
        print_error(f"{len(failures)} of {runs} runs failed; rerun the same command to retry")
    for name, failure in failures.items():
        print_error(f"{name}: {failure.message}" if runs > 1 else failure.message)
