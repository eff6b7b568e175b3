"""What the command line prints: tables to stdout, all else to stderr."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from fedsim.cli.layout import GAP, chopped, columns_that_fit, folded, parts_that_fit, whole_width, widths_of
from fedsim.console import PlainConsole, PlainFormatter
from fedsim.errors import ConfigError, is_of_the_system, system_line
from fedsim.results.files import write_whole
from fedsim.shortening import LINE, one_line, printable

if TYPE_CHECKING:
    from fedsim.results.report.comparing.tables import Table

PREFIX = "fedsim: error: "
TEXT_WIDTH, INDENT = 80, "  "


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


def print_texts(*texts: str) -> None:
    """Print texts of results, each wrapped to 80 columns or a narrower terminal, with its further lines indented."""
    width = min(TEXT_WIDTH, PlainConsole().width) if sys.stdout.isatty() else TEXT_WIDTH
    for text in texts:
        print_lines(*_wrapped(text, width))


def _wrapped(text: str, width: int, before: str = "") -> Iterator[str]:
    """Yield a text as lines of at most that many letters, further ones with an indent."""
    room = max(width - len(before) - len(INDENT), 1)
    wide = PlainConsole(width=room)
    # A word that is longer than a line is folded too, but not within an escape.
    words = [" ".join(chopped(word, room)) for word in printable(text).split(" ")]
    first, *others = Text(" ".join(words)).wrap(wide, room)
    yield before + first.plain.rstrip()
    yield from (before + INDENT + line.plain.rstrip() for line in others)


def print_table(table: "Table", *, more: str | None = None) -> None:
    """Print a table and its notes; a number is never cut.

    Parameters
    ----------
    more
        What to add to the command to see the columns for which a narrow terminal has no room. Without it they follow
        in tables of their own.
    """
    # Piped into a file, a table keeps its columns whatever the width of a terminal would be.
    width = PlainConsole().width if sys.stdout.isatty() else whole_width(table)
    drops = bool(more and table.priorities)
    parts = [columns_that_fit(table, width)] if drops else parts_that_fit(table, width)
    for columns in parts:
        _print_columns(table, columns, width)
        if dropped := [heading for column, heading in enumerate(table.headings) if drops and column not in columns]:
            counted = f"{len(dropped)} column{'s' * (len(dropped) > 1)}"
            _print_note(f"+ {counted}: {more} ({', '.join(dropped)})", width)
    for note in table.notes:
        _print_note(note, width)


def _print_note(note: str, width: int) -> None:
    """Print a note of a table, wrapped to a terminal; in a file it is one line."""
    print_lines(*(_wrapped(note, width, " ") if sys.stdout.isatty() else [f" {note}"]))


def _print_columns(table: "Table", columns: Sequence[int], width: int) -> None:
    """Print some columns of a table, wider than the terminal if there is no other way to show a number."""
    widths = widths_of(table, columns, width)
    drawn = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, room in zip(columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if table.numeric[column] else "left"
        heading = Text(folded(table.headings[column], room))
        drawn.add_column(heading, justify=justify, width=room, no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(Text(folded(row[column], room)) for column, room in zip(columns, widths, strict=True)))
    PlainConsole(width=max(width, 1 + sum(widths) + GAP * len(widths))).print(drawn)


def write_file(path: Path, content: str | bytes) -> Path:
    """Write a file, whole or not at all, and return its path."""
    write_whole(path, content)
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
