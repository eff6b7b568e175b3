"""What the command line prints: tables to stdout, all else to stderr."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.table import Table as RichTable

from fedsim.console import PlainConsole, PlainFormatter
from fedsim.errors import ConfigError, is_of_the_system, system_line
from fedsim.results.files import write_whole
from fedsim.shortening import LINE, one_line, printable

if TYPE_CHECKING:
    from fedsim.results.report.comparing.tables import Table

PIPED_WIDTH = 400  # letters, which no table has
LABEL_WIDTH, GAP = 16, 2  # letters that a text needs if it is folded, and between columns


PREFIX = "fedsim: error: "


class OneLine(PlainFormatter):
    """Writes what is logged as one line, and only a traceback as several."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Write the line of a record, cut to the length of error lines."""
        line = super().formatMessage(record)
        return line if "\n" in line else one_line(line)


def print_lines(*lines: str) -> None:
    """Print lines of results; control characters in them are escaped."""
    for line in lines:
        print(printable(line))


def say(text: str) -> None:
    """Print a line that is no result."""
    print(printable(text, lines=True), file=sys.stderr)


def print_error(message: str) -> None:
    """Print why a command failed, in one line."""
    say(PREFIX + one_line(message, LINE - len(PREFIX)))


def print_table(text: "Table") -> None:
    """Print a table and its notes; on a narrow terminal texts are folded, and numbers that have no room follow."""
    # Piped into a file, a table keeps its columns whatever the width of a terminal would be.
    console = PlainConsole(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    is_narrow = not _fits(text, console.width)
    for columns in columns_that_fit(text, console.width):
        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in columns:
            numeric = text.numeric[column]
            # Headings of numbers are folded between words.
            width = _least_width(text, column) if numeric and is_narrow else None
            justify: Literal["left", "right"] = "right" if numeric else "left"
            table.add_column(text.headings[column], justify=justify, overflow="fold", width=width)
        for row in text.rows:
            table.add_row(*(row[column] for column in columns))
        console.print(table)
    print_lines(*(f" {note}" for note in text.notes))


def columns_that_fit(text: "Table", width: int) -> Iterator[list[int]]:
    """Yield the columns of each of the tables that a table is printed as: its texts, and as many numbers as fit.

    Parameters
    ----------
    width
        Letters in a line. Each table has at least one column of numbers, so that it may be wider.
    """
    every = range(len(text.headings))
    labels = [column for column in every if not text.numeric[column]]
    numbers = [column for column in every if text.numeric[column]]
    if _fits(text, width) or not numbers:
        yield list(every)
        return
    room = width - 1 - sum(min(_width(text, column), LABEL_WIDTH) + GAP for column in labels)
    chosen: list[int] = []
    left = room
    for column in numbers:
        needed = _least_width(text, column) + GAP
        if chosen and needed > left:
            yield sorted(labels + chosen)
            chosen, left = [], room
        chosen.append(column)
        left -= needed
    yield sorted(labels + chosen)


def _fits(text: "Table", width: int) -> bool:
    return 1 + sum(_width(text, column) + GAP for column in range(len(text.headings))) <= width


def _width(text: "Table", column: int) -> int:
    return max(len(cell) for cell in (text.headings[column], *(row[column] for row in text.rows)))


def _least_width(text: "Table", column: int) -> int:
    """Return the width of a column whose cells are whole and whose heading is folded between words."""
    return max(map(len, [*text.headings[column].split(), *(row[column] for row in text.rows)]))


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
        raise ConfigError(
            f"folder {folder} cannot be written ({system_line(error)}); give another with {option}"
        ) from error
    say(f"{what}: {written}")
