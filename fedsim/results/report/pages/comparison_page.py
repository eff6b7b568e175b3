"""The page that compares several runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.results.report.charts.curve_data import curves_of_groups
from fedsim.results.report.charts.curves import curves
from fedsim.results.report.comparing import costs
from fedsim.results.report.comparing.columns import Column
from fedsim.results.report.comparing.comparable import comparable
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.groups import Group, by_name, grouped
from fedsim.results.report.comparing.question import DEFAULT, Question
from fedsim.results.report.comparing.rows import Comparison
from fedsim.results.report.comparing.tables import comparison_table
from fedsim.results.report.comparing.verdict import verdict_of
from fedsim.results.report.drawing import compared as drawing
from fedsim.results.report.pages.comparison_barriers import barrier_sections
from fedsim.results.report.pages.explained import hints
from fedsim.results.report.pages.html import write_page
from fedsim.results.report.pages.section import Section
from fedsim.results.result import Result
from fedsim.training.metrics import label

TABLE_NOTE = (
    "Accuracies and shares of clients in percent, losses in nats per example; means over the seeds. -: not measured, "
    "or never reached. (n missing): the number is without n values, of clients whose model has no finite loss or that "
    "could not be evaluated."
)
BEST_NOTE = (
    "As above, after the round in which the personalised models are best by mean {metric} on the clients' validation "
    "data; test data are never used for selection."
)
HOW_TO_READ_CURVES = (
    "By rounds, a method is better whose line is higher, or lower for a loss. By bytes, passes or seconds, the "
    "question is what a budget buys: compare where the lines cross a vertical line, not where they end. Wide bands "
    "mean that the seeds disagree; lines whose bands overlap in most rounds cannot be told apart. Personalised models "
    "are evaluated right after they received the server's layers, before they train again, so a line may dip after "
    "rounds that average layers which clients disagree on."
)
COSTS_NOTE = (
    "Mean over the clients of the personalised models on their own test data when the budget is spent{least}; and the "
    "cost at which they first reach the target. Between two evaluated rounds both are interpolated linearly, which ~ "
    "marks. -: the first evaluated round exceeds the budget, or a seed never reaches the target."
)


def write_comparison(
    results: Sequence[Result], out: Path, question: Question = DEFAULT, *, export: bool = False
) -> Path:
    """Write the page that compares several runs into the folder ``out``; return its path.

    Raises
    ------
    ConfigError
        If the question cannot be answered with these runs.
    """
    compared = compare(results, replace(question, at="last"))
    verdict = verdict_of(compared)
    results, _ = comparable(results, question)
    groups = by_name(grouped(results, question.by))
    content = {
        "title": f"{len(results)} runs on {', '.join(sorted({result.data for result in results}))}",
        "subtitle": ", ".join(str(result.folder.path) for result in results),
        "verdict": verdict.sentences,
        "lights": verdict.lights,
        "tables": _tables(results, question, compared),
        "details": [
            (f"Configuration of {name}", group.members[0].folder.config.read_text()) for name, group in groups.items()
        ],
    }
    return write_page(out, content, _sections(results, groups), {}, export=export)


def _sections(results: Sequence[Result], groups: Mapping[str, Group]) -> list[Section]:
    main = Question().of(results).metric
    name, shown = label(main), label(main, capital=True)
    return [
        Section(
            "accuracy",
            f"{shown} over rounds, bytes, passes or time",
            "Lines are means over the seeds; bands span the lowest to the highest seed. Click a name in the legend to "
            "see it alone, and with the shift key several.",
            partial(drawing.compared_curves, groups),
            curves(curves_of_groups(groups)),
            HOW_TO_READ_CURVES,
            {what: partial(drawing.compared_costs, groups, cost) for what, cost in _costs_of(results).items()},
        ),
        Section(
            "clients",
            f"Personalised {name} of each client",
            "Each point is a client of one seed after the last round. Boxes span the quartiles; their lines are the "
            "medians.",
            partial(drawing.compared_clients, groups),
        ),
        *barrier_sections(groups),
    ]


def _costs_of(results: Sequence[Result]) -> dict[str, str]:
    """Return the costs that are drawn in files of their own, by the names of these."""
    has_passes = any(costs.spent(result, costs.PASSES).notna().all() for result in results)
    return {"traffic": costs.BYTES, **({"compute": costs.PASSES} if has_passes else {})}


def _tables(results: Sequence[Result], question: Question, last: Comparison) -> list[dict[str, Any]]:
    """Return the tables at the last round, at the best one where there are validation data, and at equal costs."""
    at_cost = [column for column in last.columns if column.key.startswith("at_") or column.key.endswith("_to_target")]
    others = [column for column in last.columns if column not in at_cost]
    tables = [_table("Last round", last, others, TABLE_NOTE)]
    if not any(result.of("personalised", question.metric, "validation").empty for result in results):
        best = compare(results, replace(question, at="best"))
        keys = {column.key for column in others}
        shown = [column for column in best.columns if column.key in keys]
        tables.append(
            _table("Best round on validation data", best, shown, BEST_NOTE.format(metric=last.question.metric))
        )
    if at_cost:
        defaults = not all(question.budgets.get(what) for what in costs.COSTS)
        least = " (by default, the smallest total of the runs of the same partition and seed)" if defaults else ""
        tables.append(_table("At equal cost", last, at_cost, COSTS_NOTE.format(least=least)))
    return tables


def _table(title: str, comparison: Comparison, columns: Sequence[Column], note: str) -> dict[str, Any]:
    table = comparison_table(comparison, columns)
    texts = [None] * (len(table.headings) - len(columns))
    values = [
        [*texts, *(repr(value.mean) if (value := row.values[column.key]).is_known else "" for column in columns)]
        for row in comparison.rows
    ]
    return {"title": title, "table": table, "numbers": values, "hints": hints(columns), "note": note}
