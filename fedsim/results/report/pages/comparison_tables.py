"""The tables of a comparison's page: at the round asked for, at the other one, and at equal costs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsim.results.report.comparing import costs
from fedsim.results.report.comparing.columns import Column
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.rows import Comparison
from fedsim.results.report.comparing.tables import comparison_table
from fedsim.results.report.pages.explained import hints
from fedsim.results.report.pages.pivot import Marks, marks_of
from fedsim.results.result import Result
from fedsim.training.metrics import label

TABLE_NOTE = (
    "Accuracies and shares of clients in percent, losses per example; means over the seeds. -: not measured, "
    "or never reached. (n missing): the number leaves out n values of clients whose model has no finite loss or that "
    "could not be evaluated."
)
TITLES = {"last": "Last round", "best": "Best round on validation data"}
ROUND_NOTES = {
    "last": "After the last evaluated round.",
    "best": (
        "After the round in which the personalised models are best by mean {metric} on the clients' validation data; "
        "test data are never used for selection. Bytes, passes and seconds are those up to that round."
    ),
}
COSTS_NOTE = (
    "Mean over the clients of the personalised models on their own test data when the budget is spent{least}; and the "
    "cost at which their running mean on validation data first reaches the target. Between two evaluated rounds both "
    "are interpolated linearly, which ~ marks. -: the first evaluated round exceeds the budget, or a seed never "
    "reaches the target."
)


def is_at_cost(column: Column) -> bool:
    """Tell whether a column has values at equal cost, or costs of equal values."""
    return column.key.startswith("at_") or column.key.endswith("_to_target")


def comparison_tables(results: Sequence[Result], compared: Comparison, marks: Marks) -> list[dict[str, Any]]:
    """Return the table that was asked for, that of the best or last round, if there is one, and that of equal costs."""
    question = compared.question
    at_cost = [column for column in compared.columns if is_at_cost(column)]
    others = [column for column in compared.columns if not is_at_cost(column)]
    copies = [("csv", "CSV"), ("latex", "LaTeX")]
    tables = [{**_at_round(compared, others, marks), "copies": copies}]
    if not any(result.of("personalised", question.metric, "validation").empty for result in results):
        second = compare(results, replace(question, at="last" if question.at == "best" else "best"))
        keys = {column.key for column in others}
        shown = [column for column in second.columns if column.key in keys]
        tables.append(_at_round(second, shown, marks_of(second, shown)))
    if at_cost:
        defaults = not all(question.budgets.get(what) for what in costs.COSTS)
        least = " (by default, the smallest total of the runs of the same partition and seed)" if defaults else ""
        tables.append(_table("At equal cost", compared, at_cost, {}, COSTS_NOTE.format(least=least)))
    return tables


def _at_round(compared: Comparison, columns: Sequence[Column], marks: Marks) -> dict[str, Any]:
    question = compared.question
    note = f"{ROUND_NOTES[question.at].format(metric=label(question.metric))} {TABLE_NOTE}"
    return _table(TITLES[question.at], compared, columns, marks, note)


def _table(
    title: str, comparison: Comparison, columns: Sequence[Column], marks: Mapping[str, Mapping[int, str]], note: str
) -> dict[str, Any]:
    table = comparison_table(comparison, columns)
    texts = len(table.headings) - len(columns)
    numbers, classes = [], []
    for place, row in enumerate(comparison.rows):
        values = [row.values[column.key] for column in columns]
        numbers.append([*[None] * texts, *(repr(value.mean) if value.is_known else "" for value in values)])
        classes.append([*[""] * texts, *(marks.get(column.key, {}).get(place, "") for column in columns)])
    return {
        "title": title,
        "table": table,
        "numbers": numbers,
        "marks": classes,
        "hints": hints(columns),
        "note": note,
    }
