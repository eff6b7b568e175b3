"""The commands about finished runs: ``fedsim compare``, ``report``, ``check``, ``verify`` and ``export``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedsim.cli import completion
from fedsim.cli.actions import action
from fedsim.cli.arguments import RunPaths, Unfinished, check_files, check_folder, round_of
from fedsim.config.config import Config
from fedsim.config.toml import read_toml
from fedsim.errors import ConfigError


def compare_command(
    paths: RunPaths,
    metric: Annotated[
        str,
        typer.Option(
            metavar="METRIC",
            help="Metric to compare, such as accuracy, loss or macro-f1.",
            autocompletion=completion.metrics,
        ),
    ] = "accuracy",
    by: Annotated[
        str | None,
        typer.Option(
            metavar="SETTING",
            help="Setting to group by, such as partition.alpha, or strategy for methods with their options (default: "
            "all settings except the seed).",
            autocompletion=completion.swept_settings,
        ),
    ] = None,
    at: Annotated[
        Literal["last", "best"],
        typer.Option(help="Round to compare: the last, or the best on the clients' validation data."),
    ] = "last",
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="STRATEGY|SETTING=VALUE",
            help="Baseline runs; gains are paired by partition and seed. best:NAME,NAME takes the best of several on "
            "validation data, in each setting.",
            autocompletion=completion.strategies,
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="bytes[=50MB]|passes[=1M]",
            help="Compare accuracy at this budget (default: by partition and seed, the smallest total of a run).",
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            metavar="VALUE",
            help="Report rounds, bytes and passes needed to reach this mean personalised accuracy on validation data, "
            "such as 0.9.",
        ),
    ] = None,
    smooth: Annotated[
        int, typer.Option(metavar="N", help="Evaluations whose mean is compared with --target; 1 for single rounds.")
    ] = 3,
    unfinished: Unfinished = False,
    correct: Annotated[
        Literal["holm"] | None,
        typer.Option(
            help="Show p-values against the baseline (default: the best method), corrected for multiple testing."
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="all|NAME,NAME,...", help="Columns of the table, by their names in the CSV."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write all columns as CSV, with full precision.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown.")] = None,
    latex: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as LaTeX (booktabs).")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Output directory of the page (default: the runs' common folder)."),
    ] = None,
) -> None:
    """Compare runs in one table, seeds together, and write a page about them."""
    question = {
        "metric": metric,
        "by": by,
        "at": at,
        "baseline": baseline,
        "budget": budget or (),
        "target": target,
        "smooth": smooth,
        "unfinished": unfinished,
        "correct": correct,
        "columns": columns,
    }
    files = {"--csv": csv, "--markdown": markdown, "--latex": latex}
    check_files(files)
    check_folder(out, "--out")
    action("compare")(paths, question, files, out)


def report_command(
    paths: RunPaths,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Output directory of the page and figures (default: the run's folder)."),
    ] = None,
    unfinished: Unfinished = False,
) -> None:
    """Write a page about a run, or about several, with every figure as PDF and PNG."""
    check_folder(out, "--out")
    action("report")(paths, out, unfinished=unfinished)


def check_command(
    paths: RunPaths,
    expect: Annotated[
        Path | None,
        typer.Option(
            metavar="EXPERIMENT.toml", help="Read expectations from this file instead of the runs' own config."
        ),
    ] = None,
    means: Annotated[
        bool,
        typer.Option("--means", help="Decide by the mean over the seeds, or the value of one seed, without interval."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with exit code 1 if an expectation is undecided, too.")
    ] = False,
) -> None:
    """Test whether runs show what their experiment expects; the exit code is 1 if they do not.

    Each expectation is ok if the whole 95 % interval over the seeds keeps its rule, FAILED if none of it does, and
    else undecided.
    """
    wanted = Config.parse(read_toml(expect), str(expect)).expect if expect else None
    if not action("check")(paths, wanted, means=means, strict=strict):
        raise typer.Exit(1)


def export_command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of one run.", autocompletion=completion.run_folders),
    ],
    to: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="File to write.")],
    client: Annotated[
        int | None,
        typer.Option(metavar="N", help="Client whose personalised model is exported (default: the global model)."),
    ] = None,
    server_round: Annotated[
        str,
        typer.Option(
            "--round",
            metavar="best|last|N",
            help="Round of the model: the best on the clients' validation data, that of the last checkpoint, or N.",
        ),
    ] = "last",
    metric: Annotated[str, typer.Option(metavar="METRIC", help="Metric of the best round.")] = "accuracy",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Export a model of a run, as it was evaluated: a state dict that plain torch loads."""
    if to.suffix != ".safetensors":
        raise ConfigError(f"--to {to}: the file's name must end in .safetensors")
    if to.exists() and not force:
        raise ConfigError(f"--to {to} exists; give another file, or replace it with --force")
    wanted = round_of(server_round)  # before the action is imported
    action("export")(run, client, wanted, metric, to)


def verify_command(
    paths: RunPaths,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--replay",
            min=1,
            metavar="N",
            help="Also run N rounds again, from the newest checkpoint that has N rounds after it, else from the start, "
            "and compare records and checkpoint byte by byte.",
        ),
    ] = None,
) -> None:
    """Verify that the folders of runs are whole, file by file; the exit code is 1 if one is not."""
    if not action("verify")(paths, rounds):
        raise typer.Exit(1)
