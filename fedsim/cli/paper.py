"""The command about figures for a paper: ``fedsim figure``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedsim.cli.actions import action
from fedsim.cli.arguments import RunPaths, check_files
from fedsim.cli.finished import Unfinished
from fedsim.errors import ConfigError

SUFFIXES = (".pdf", ".png", ".svg")


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
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {out}: the file's name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    check_files({"--out": out})
    action("figure")(
        name, paths, out, width=width, facets=facet, x=x, metric=metric, model=model, unfinished=unfinished
    )


COMMANDS: dict[str, Callable[..., None]] = {"figure": figure_command}
