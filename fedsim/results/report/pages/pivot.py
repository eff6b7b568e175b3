"""The pivot of a comparison: methods by a swept setting, with the best marked and all that may be as good."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.results.report.comparing.best import MAIN_COLUMN, Method, best_and_ties, methods_by_setting
from fedsim.results.report.comparing.columns import Column
from fedsim.results.report.comparing.rows import Comparison
from fedsim.results.report.comparing.tables import comparison_table
from fedsim.results.report.pages.explained import hints

BEST, TIED, WORSE, UNTESTED = "best", "tied", "worse", "untested"
COMPARED = ("score", "index")  # kinds of columns whose best value is marked
Marks = Mapping[str, Mapping[int, str]]


def marks_of(comparison: Comparison, columns: Sequence[Column]) -> Marks:
    """Return for each column, by its key, how each row stands among those of its setting, by the row's place."""
    places = {id(row): place for place, row in enumerate(comparison.rows)}
    found: dict[str, dict[int, str]] = {}
    for column in columns:
        if column.kind in COMPARED and column.higher_is_better is not None:
            of_column = found[column.key] = {}
            for standing in best_and_ties(comparison, column.key):
                for method in standing.ranking if len(standing.methods) > 1 else ():
                    of_column[places[id(method.row)]] = _mark(method, standing)
    return found


def _mark(method: Method, standing: Any) -> str:
    if method is standing.best:
        return BEST
    if method in standing.untested:
        return UNTESTED
    return TIED if method in standing.ties else WORSE


def pivot_data(comparison: Comparison, columns: Sequence[Column], marks: Marks) -> dict[str, Any] | None:
    """Return what the page's script makes the pivot of; None where no setting is swept.

    Returns
    -------
    pivot
        ``settings`` that are swept, ``measures``, and ``lines``: a method, its value of each setting, and for each
        measure the text, the number by which it is sorted, and its mark.
    """
    by_setting = methods_by_setting(comparison)
    settings = list(by_setting[0][0])
    if not settings or len(by_setting) < 2:
        return None
    columns = sorted(columns, key=lambda column: column.key != MAIN_COLUMN)
    table = comparison_table(comparison, columns)
    first = len(table.headings) - len(columns)
    places = {id(row): place for place, row in enumerate(comparison.rows)}
    lines = []
    for setting, methods in by_setting:
        for method in methods:
            place = places[id(method.row)]
            cells = [
                [text, _number(method.row.values[column.key].mean), marks.get(column.key, {}).get(place, "")]
                for column, text in zip(columns, table.rows[place][first:], strict=True)
            ]
            lines.append([method.name, [str(setting[key]) for key in settings], cells])
    explained = hints(columns)
    measures = [{"heading": column.heading, "hint": explained.get(column.heading, "")} for column in columns]
    return {"settings": settings, "measures": measures, "lines": lines}


def _number(value: float) -> float | None:
    return None if value != value else value
