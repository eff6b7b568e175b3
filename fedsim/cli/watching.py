"""The commands about runs that may be running: ``fedsim status`` and ``watch``."""

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.actions import action
from fedsim.cli.completion import run_folders


def status_command(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Folders of runs or of experiments (default: runs).",
            autocompletion=run_folders,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Show how far runs are: done, running, stopped or failed, the time left, and the newest value."""
    action("status")(paths or [Path("runs")], as_json=as_json)


def watch_command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Folder of a run, or of an experiment with one that is running.",
            autocompletion=run_folders,
        ),
    ],
) -> None:
    """Draw the curves of a run in the terminal until it ends; Ctrl-C ends the command but not the run."""
    if not action("watch")(path):
        raise typer.Exit(1)
