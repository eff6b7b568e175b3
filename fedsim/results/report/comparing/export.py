"""Tables as files that other programs read: CSV with full precision, Markdown and LaTeX as shown."""

import csv
import io
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial

from fedsim.results.report.comparing.columns import Column
from fedsim.results.report.comparing.latex import escape_latex, needed_packages
from fedsim.results.report.comparing.rows import Comparison, Row
from fedsim.results.report.comparing.tables import UNKNOWN, Table
from fedsim.shortening import printable

# How a cell begins that a spreadsheet would compute; in some languages also with wide letters.
FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
OVER_SEEDS = "half-width of the 95 % interval over seeds"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def as_csv(comparison: Comparison, columns: Sequence[Column]) -> str:
    """Return the lines of `values_of`."""
    return csv_text(values_of(comparison, columns))


def csv_text(lines: Iterable[Sequence[str]]) -> str:
    """Return lines as CSV, with an apostrophe before a text that a spreadsheet would take for a formula."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows(map(_cell, line) for line in lines)
    return buffer.getvalue()


def _cell(text: str) -> str:
    return printable(f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text)


def values_of(comparison: Comparison, columns: Sequence[Column]) -> Iterator[list[str]]:
    """Yield headings, and one line per setting with the full precision of each mean and of its interval's half-width.

    The method is named as in the literature, the strategy as in the settings. Accuracies are in [0, 1],
    amounts in bytes, examples and seconds; a cell is empty where nothing is known. A column from which values of
    clients are missing in some line has their number in a further one, and one of which values are interpolated whether
    they are.
    """
    settings = tuple(comparison.rows[0].group.settings)
    fields = [field for column in columns for field in _fields(comparison, column)]
    yield ["method", "strategy", *settings, "metric", "at", "seeds", *(name for name, _ in fields)]
    for row in comparison.rows:
        question = comparison.question
        own = ["" if (value := str(row.group.settings[key])) == UNKNOWN else value for key in settings]
        names = (row.group.label, row.group.registered)
        numbers = (read(row) for _, read in fields)
        yield [*names, *own, question.metric, question.at, str(row.group.seeds), *numbers]


def _fields(comparison: Comparison, column: Column) -> Iterator[tuple[str, Callable[[Row], str]]]:
    """Yield the headings that a column has in a file, and what a row has there."""
    key = column.key
    values = [row.values[key] for row in comparison.rows]
    if column.kind == "clients":
        for name in ("better", "equal", "worse"):
            yield f"{key}_{name}", partial(_count, key, name)
    else:
        yield key, lambda row: repr(row.values[key].mean) if row.values[key].is_known else ""
    if column.kind not in ("clients", "p"):
        yield f"{key}_half_width", lambda row: repr(row.values[key].half_width) if row.values[key].has_width else ""
    if any(value.missing for value in values):
        yield f"{key}_missing", lambda row: str(row.values[key].missing)
    if any(value.interpolated for value in values):
        yield f"{key}_interpolated", partial(_is_interpolated, key)


def _count(key: str, name: str, row: Row) -> str:
    value = row.values[key]
    return str(getattr(value, name)) if value.is_known else ""


def _is_interpolated(key: str, row: Row) -> str:
    value = row.values[key]
    return str(value.interpolated).lower() if value.is_known else ""


def as_markdown(table: Table, bold: Collection[tuple[int, int]] = ()) -> str:
    """Return a table as Markdown of GitHub's kind.

    Parameters
    ----------
    bold
        Row and column of each cell in bold.
    """
    lines = [table.headings, tuple("---:" if numeric else "---" for numeric in table.numeric), *table.rows]
    escaped = [list(map(_escape_markdown, line)) for line in lines]
    for row, column in bold:
        escaped[2 + row][column] = f"**{escaped[2 + row][column]}**"
    widths = [max(map(len, column)) for column in zip(*escaped, strict=True)]
    aligned = [
        [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, table.numeric, strict=True)
        ]
        for line in escaped
    ]
    written = [f"| {' | '.join(line)} |\n" for line in aligned]
    return "".join([*written, *(f"\n{_escape_markdown(note)}\n" for note in table.notes)])


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|*_<`\[\]$&~])", r"\\\1", text)


def as_latex(table: Table, after_mean: str = "") -> str:
    """Return a table as a LaTeX ``tabular`` of the package booktabs.

    Parameters
    ----------
    after_mean
        What follows a ± in the cells, such as `OVER_SEEDS`; empty for a table without any.
    """
    body = [" & ".join(map(escape_latex, line)) + r" \\" for line in (table.headings, *table.rows)]
    alignment = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [
        needed_packages("".join(body)) + (f" What follows a ± is the {after_mean}." if after_mean else ""),
        *(f"% {note}" for note in table.notes),
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        body[0],
        r"\midrule",
        *body[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"
