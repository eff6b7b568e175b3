"""The commands for papers: ``fedsim table`` and ``figure``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedsim.cli.actions import action
from fedsim.cli.arguments import RunPaths, Unfinished, check_files
from fedsim.errors import ConfigError

TABLES = {".tex": "latex", ".md": "markdown", ".csv": "csv"}
FIGURES = (".pdf", ".png", ".svg")


def table_command(
    paths: RunPaths,
    pivot: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING",
            help="Setting whose values are the columns, such as partition.alpha. Can be repeated (default: those in "
            "which the runs differ).",
        ),
    ] = None,
    column: Annotated[
        str, typer.Option(metavar="NAME", help="Measure in the cells: a column of 'fedsim compare', by its name.")
    ] = "personalised",
    metric: Annotated[
        str, typer.Option(metavar="METRIC", help="Metric of the measure, such as accuracy, loss or macro-f1.")
    ] = "accuracy",
    at: Annotated[
        Literal["last", "best"],
        typer.Option(help="Round of the measure: the last, or the best on the clients' validation data."),
    ] = "last",
    bold: Annotated[
        Literal["best", "none"],
        typer.Option(help="Mark the best of each column, and the methods that are not distinguishable from it."),
    ] = "best",
    spread: Annotated[
        Literal["std", "interval", "none"],
        typer.Option(
            help="Spread after the mean over the seeds: standard deviation, or half-width of the 95 % interval."
        ),
    ] = "std",
    unfinished: Unfinished = False,
    latex: Annotated[bool, typer.Option("--latex", help="Write LaTeX (booktabs).")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Write Markdown.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV, a line per cell, with full precision.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write, in the format of its ending: .tex, .md or .csv."),
    ] = None,
) -> None:
    """Print a table for a paper: methods by the values of a setting, each a mean over the seeds with its spread."""
    wanted = [name for name, is_wanted in (("latex", latex), ("markdown", markdown), ("csv", csv)) if is_wanted]
    if len(wanted) > 1:
        raise ConfigError(f"--{wanted[0]} and --{wanted[1]} exclude each other; give one of them")
    kind = wanted[0] if wanted else TABLES.get(out.suffix, "") if out else "text"
    if not kind:
        raise ConfigError(f"--out {out}: the file's name must end in {', '.join(TABLES)}, or give --latex")
    if out and TABLES.get(out.suffix, kind) != kind:
        raise ConfigError(f"--{kind} and --out {out} are two formats; give one of them, or another file")
    check_files({"--out": out})
    options = {"column": column, "metric": metric, "at": at, "bold": bold, "spread": spread, "unfinished": unfinished}
    action("table")(paths, kind, out, pivot=pivot, **options)


def figure_command(
    name: Annotated[
        Literal["curves", "clients", "barriers", "strip"],
        typer.Argument(
            metavar="FIGURE",
            help="curves (values by round or cost), clients (a point each), barriers (by layer and round) or strip "
            "(layers as wide as their bytes, coloured by what averaging costs the clients).",
        ),
    ],
    paths: RunPaths,
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write: .pdf, .png or .svg.")],
    width: Annotated[
        Literal["column", "page"], typer.Option(help="Width: a column of 3.3 inches, or a page of 7 inches.")
    ] = "column",
    facet: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING",
            help="Setting with a panel for each of its values, such as partition.alpha (default: what is swept). "
            "Can be repeated.",
        ),
    ] = None,
    x: Annotated[
        Literal["rounds", "bytes", "passes", "seconds"],
        typer.Option("--x", metavar="AMOUNT", help="What curves are drawn over: rounds, bytes, passes or seconds."),
    ] = "rounds",
    metric: Annotated[
        str, typer.Option(metavar="METRIC", help="Metric of curves and clients, such as accuracy or loss.")
    ] = "accuracy",
    model: Annotated[
        Literal["personalised", "global"],
        typer.Option(help="Model of curves: on the clients' or the server's test data."),
    ] = "personalised",
    unfinished: Unfinished = False,
) -> None:
    """Draw a figure for a paper: as wide as a column or a page, with text of 8 points and embedded fonts."""
    if out.suffix.lower() not in FIGURES:
        raise ConfigError(f"--out {out}: the file's name must end in {', '.join(FIGURES[:-1])} or {FIGURES[-1]}")
    check_files({"--out": out})
    action("figure")(
        name, paths, out, width=width, facets=facet, x=x, metric=metric, model=model, unfinished=unfinished
    )
