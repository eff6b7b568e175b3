"""What the command line prints: tables to stdout, all else to stderr."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from fedsim.errors import ConfigError, is_of_the_system
from fedsim.results.files import write_whole

if TYPE_CHECKING:
    from fedsim.results.report.comparing.tables import Table

PIPED_WIDTH = 400  # letters, which no table has


def say(text: str) -> None:
    """Print a line that is no result."""
    print(text, file=sys.stderr)


def print_error(message: str) -> None:
    """Print why a command failed."""
    say(f"fedsim: error: {message}")


def print_table(text: "Table") -> None:
    """Print a table with the columns' widths that its cells need."""
    table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading, numeric in zip(text.headings, text.numeric, strict=True):
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=not numeric)
    for row in text.rows:
        table.add_row(*row)
    # Piped into a file, a table keeps its columns whatever the width of a terminal would be.
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)
    for note in text.notes:
        print(f" {note}")


def write_text(path: Path, text: str) -> Path:
    """Write a file, whole or not at all, and return its path."""
    write_whole(path, text)
    return path


def write_to(folder: Path, write: Callable[[], Path], what: str = "report", option: str = "--out") -> None:
    """Write what a command makes and say where it is.

    Raises
    ------
    ConfigError
        If the folder cannot be written.
    """
    try:
        written = write()
    except OSError as error:
        if not is_of_the_system(error) or (isinstance(error, FileNotFoundError) and folder.is_dir()):
            raise  # a file that is read is missing
        raise ConfigError(f"folder {folder} cannot be written ({error}); give another with {option}") from error
    say(f"{what}: {written}")
