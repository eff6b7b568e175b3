"""A pivot as text: for the terminal, as Markdown, as LaTeX that compiles, and as CSV."""

from collections.abc import Iterator

import pandas as pd

from fedsim.results.differences import short_key
from fedsim.results.report.comparing.comparable import unfinished_texts
from fedsim.results.report.comparing.export import as_markdown, csv_text
from fedsim.results.report.comparing.latex import escape_latex, needed_packages
from fedsim.results.report.comparing.pivot import Cell, Key, Pivot, Spread, lines_of
from fedsim.results.report.comparing.statistics import CONFIDENCE, LEVEL
from fedsim.results.report.comparing.tables import INTERPOLATED, UNKNOWN, Table, notes_of, writer_of
from fedsim.results.report.comparing.units import format_missing, how_many

BEST, TIE = "*", "†"


def pivot_table(pivot: Pivot, spread: Spread = "std", *, marks: bool = True, best: str = BEST) -> Table:
    """Return a pivot as cells of text, with a mark behind the best of a column and behind those that tie with it.

    Parameters
    ----------
    marks
        Whether there are marks.
    best
        The mark of the best, if it is not shown in another way.
    """

    def text(cell: Cell | None) -> str:
        if cell is None:
            return UNKNOWN
        mark = best if cell.is_best else TIE if cell.is_tie else ""
        return _number(pivot, cell, spread) + (f" {mark}" if marks and mark else "")

    headings = ("method", *(_heading(pivot, key) for key in pivot.keys))
    rows = tuple((name, *(text(pivot.cells.get((name, key))) for key in pivot.keys)) for name in pivot.methods)
    notes = (*_what(pivot, spread), *(_marks(pivot, best or "bold") if marks else ()), *notes_of(pivot.comparison))
    return Table(headings, (False, *[True] * len(pivot.keys)), rows, notes)


def pivot_markdown(pivot: Pivot, spread: Spread = "std", *, marks: bool = True) -> str:
    """Return a pivot as Markdown of GitHub's kind, the best of a column in bold."""
    return as_markdown(pivot_table(pivot, spread, marks=marks, best=""), _bold(pivot) if marks else ())


def pivot_latex(pivot: Pivot, spread: Spread = "std", *, marks: bool = True) -> str:
    """Return a pivot as a LaTeX ``tabular`` of the package booktabs, the best of a column in bold."""
    table = pivot_table(pivot, spread, marks=marks, best="")
    cells = [list(map(escape_latex, row)) for row in table.rows]
    for row, column in _bold(pivot) if marks else ():
        cells[row][column] = rf"\textbf{{{cells[row][column]}}}"
    keys = [tuple(map(escape_latex, key)) for key in pivot.keys]
    names = [escape_latex(short_key(key, pivot.settings)) for key in pivot.settings]
    # One level has plain values: of a tuple with one, pandas would print the brackets.
    values = [key[0] for key in keys] if names else [escape_latex(pivot.column.heading)]
    columns = pd.Index(values, name=names[0] if names else None)
    if len(names) > 1:
        columns = pd.MultiIndex.from_tuples(keys, names=names)
    frame = pd.DataFrame([row[1:] for row in cells], index=[row[0] for row in cells], columns=columns)
    body = frame.style.to_latex(hrules=True, column_format="l" + "r" * len(keys), multicol_align="c")
    return "".join([needed_packages(body), *(f"\n% {note}" for note in table.notes), "\n", body])


def pivot_csv(pivot: Pivot) -> str:
    """Return a pivot as CSV, a line per cell with the full precision of each number."""
    return csv_text(lines_of(pivot))


def _bold(pivot: Pivot) -> list[tuple[int, int]]:
    """Return row and column of the best cells."""
    return [
        (pivot.methods.index(method), 1 + pivot.keys.index(key))
        for (method, key), cell in pivot.cells.items()
        if cell.is_best
    ]


def _number(pivot: Pivot, cell: Cell, spread: Spread) -> str:
    missing = format_missing(cell.value.missing)
    if not cell.value.is_known:
        return f"{UNKNOWN}{missing}"
    write = writer_of(pivot.column.kind, pivot.comparison.question)
    width = {"std": cell.std, "interval": cell.value.half_width, "none": float("nan")}[spread]
    interpolated = INTERPOLATED if cell.value.interpolated else ""
    return interpolated + write(cell.value.mean) + (f" ± {write(width)}" if width == width else "") + missing


def _fewer(pivot: Pivot, most: int) -> Iterator[str]:
    """Yield the cells with fewer seeds than the most: column by column, or the whole column."""
    for seeds in sorted({cell.seeds for cell in pivot.cells.values()} - {most}):
        for key in dict.fromkeys(key for _, key in pivot.cells):
            there = {method: cell.seeds for (method, each), cell in pivot.cells.items() if each == key}
            methods = [method for method, its in there.items() if its == seeds]
            where = f" at {_heading(pivot, key)}" if key else ""
            if 1 < len(methods) == len(there):
                methods = ["all"]
            if methods:
                yield f"{seeds} for {', '.join(methods)}{where}"


def _heading(pivot: Pivot, key: Key) -> str:
    texts = [f"{short_key(name, pivot.settings)} {value}" for name, value in zip(pivot.settings, key, strict=True)]
    return ", ".join(texts) or pivot.column.heading


def _what(pivot: Pivot, spread: Spread) -> Iterator[str]:
    """Say what the numbers are, over how many seeds, and which cells have fewer."""
    question, column = pivot.comparison.question, pivot.column
    is_of_metric = column.kind in ("score", "difference")
    unit = " in %" if is_of_metric and question.is_share else ""
    at = f", {question.at} round" if column.at_round else ""
    what = f"{column.heading} {question.metric}" if is_of_metric else column.heading
    most = max(cell.seeds for cell in pivot.cells.values())
    interval = f" ± half-width of the {100 * CONFIDENCE:g} % interval"
    widths = {"std": " ± standard deviation", "interval": interval, "none": ""}
    over = f"mean{widths[spread]} over {most} seeds" if most > 1 else "1 seed"
    fewer = "; ".join(_fewer(pivot, most))
    yield f"{what}{unit}{at}, {over}" + (f"; fewer seeds: {fewer}" if fewer else "")
    if column.note:
        yield column.note
    yield from unfinished_texts(pivot.comparison.results, pivot.comparison.unfinished)
    if any(cell.value.interpolated for cell in pivot.cells.values()):
        yield f"{INTERPOLATED}: interpolated between two evaluated rounds"


def _marks(pivot: Pivot, best: str) -> Iterator[str]:
    cells = pivot.cells.values()
    if any(cell.is_best for cell in cells):
        yield f"{best}: best of its column" + (f" with the same {', '.join(pivot.apart)}" if pivot.apart else "")
    if any(cell.is_tie for cell in cells):
        yield f"{TIE}: not distinguishable from the best, by a paired t-test over the seeds at {LEVEL:.2g}"
    if pivot.untested:
        untested = how_many(pivot.untested, "cell")
        yield f"{untested} not tested against the best: fewer than two paired seeds; run more seeds"
