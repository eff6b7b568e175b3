"""The terminal and logs, in which names of layers, classes, files and runs are text without control characters."""

import logging
from typing import Any

from rich.console import Console
from rich.text import Text

from fedsim.shortening import printable


class PlainConsole(Console):
    """Prints texts as they are written: brackets and colons mean nothing, and control characters are escaped."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text, or a cell of a table, as one line."""
        plain = options | {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(printable(text), **plain)


class PlainFormatter(logging.Formatter):
    """Writes what is logged with control characters escaped, except the ends of lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record with its traceback."""
        return printable(super().format(record), lines=True)
