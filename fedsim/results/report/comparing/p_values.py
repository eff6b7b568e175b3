"""P-values of a comparison: of each line against the baseline, or else against the best of its setting."""

from collections.abc import Sequence
from dataclasses import replace

from fedsim.results.report.comparing.best import MAIN_COLUMN, best_and_ties
from fedsim.results.report.comparing.columns import ANSWER, Column
from fedsim.results.report.comparing.costs import COSTS
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.comparing.pairs import Baseline
from fedsim.results.report.comparing.rows import Comparison
from fedsim.results.report.comparing.statistics import Interval, holm

KEY = "p"


def with_p_values(comparison: Comparison, baseline: Baseline | None) -> Comparison:
    """Return a comparison with columns of p-values, which a table shows if they are to be corrected.

    They compare the personalised models, at the end and at each budget that was asked for; each column is corrected
    for the number of tests in it.
    """
    comparison = _with(comparison, baseline, MAIN_COLUMN, KEY)
    for what in COSTS:
        if what in comparison.question.budgets:
            comparison = _with(comparison, baseline, f"at_{what}", f"{KEY}_at_{what}")
    return comparison


def _with(comparison: Comparison, baseline: Baseline | None, tested: str, key: str) -> Comparison:
    """Return a comparison with the p-values of one of its columns."""
    column = next(each for each in comparison.columns if each.key == tested)
    values = _against_baseline(comparison, baseline, column) if baseline else _against_best(comparison, column)
    by_group = {id(row.group): Interval(p) for row, p in zip(comparison.rows, values, strict=True)}

    def of(group: Group) -> Interval:
        return by_group[id(group)]

    rows = [replace(row, values={**row.values, key: of(row.group)}) for row in comparison.rows]
    is_asked = comparison.question.correct is not None
    if not is_asked and not any(value.is_known for value in by_group.values()):
        return replace(comparison, rows=rows)
    what = f"p {column.heading}" if key != KEY else "p"
    heading = f"{what} vs {baseline.name if baseline else 'best'}{', Holm' * is_asked}"
    found = Column(key, heading, "p", of, compact=is_asked, asked=is_asked, priority=ANSWER)
    return replace(comparison, rows=rows, columns=[*comparison.columns, found])


def _against_best(comparison: Comparison, column: Column) -> list[float]:
    found = {
        id(method.row): standing.p[method.name]
        for standing in best_and_ties(comparison, column.key)
        for method in standing.ranking[1:]
    }
    return [found.get(id(row), float("nan")) for row in comparison.rows]


def _against_baseline(comparison: Comparison, baseline: Baseline, column: Column) -> Sequence[float]:
    question = comparison.question
    is_higher = question.higher_is_better
    values = [baseline.gain(row.group.members, column.values, higher_is_better=is_higher).p for row in comparison.rows]
    return [*map(float, holm(values))] if question.correct == "holm" else values
