"""On the terminal and in logs, names are text: no markup, no emoji, no control characters."""

import io
import logging

import pytest
from rich.table import Table

from fedsim.cli.terminal import OneLine
from fedsim.console import PlainConsole, PlainFormatter
from fedsim.shortening import printable

# As they are shown, by what they are.
HOSTILE = {
    "[f]c1": "[f]c1",
    "[f]c2": "[f]c2",
    "[bold]x[/y]": "[bold]x[/y]",
    "[link=x]": "[link=x]",
    ":smile:": ":smile:",
    "\x1b[31mred": r"\x1b[31mred",
    "a\nb\rc\td": r"a\nb\rc\td",
    "\u202eevil": r"\u202eevil",
    "\udcff": r"\udcff",
    "\x9b31m\u2028": r"\x9b31m\u2028",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_console_shows_names_as_they_are_written(name: str, is_terminal: bool) -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, width=80, force_terminal=is_terminal, color_system=None)
    table = Table(name)
    table.add_row(name)
    console.print(name)
    console.print(name, soft_wrap=True)
    console.print(table)
    assert file.getvalue().count(HOSTILE[name]) == 4
    assert not any(letter in file.getvalue() for letter in "\r\u202e\x9b")


def test_a_text_of_several_lines_keeps_its_lines_only() -> None:
    assert printable("a\n\tb\r\x1b", lines=True) == "a\n\tb\\r\\x1b"


@pytest.mark.parametrize("formatter", [PlainFormatter("%(message)s"), OneLine("%(message)s")])
def test_a_log_holds_no_control_characters(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("\x1b[31m\r")
    except ValueError as error:
        trace = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("x", logging.INFO, "x", 1, "layer %s", ("\x9b[f]c1",), trace)
    text = formatter.format(record)
    assert text.startswith("layer \\x9b[f]c1\nTraceback")
    assert text.endswith("ValueError: \\x1b[31m\\r")
