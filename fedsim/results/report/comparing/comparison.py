"""Comparison of runs: one row per setting, with the mean over its seeds of each measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsim.results.report.comparing.columns import Column, columns_of
from fedsim.results.report.comparing.groups import Group, grouped
from fedsim.results.report.comparing.question import DEFAULT, Question
from fedsim.results.report.comparing.statistics import Interval
from fedsim.results.result import Result


@dataclass(frozen=True)
class Row:
    """One line of a comparison; values by the keys of the columns."""

    group: Group
    values: Mapping[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """Rows and their columns; a measure that no run has gets no column, unless it was asked for."""

    question: Question
    columns: Sequence[Column]
    rows: Sequence[Row]


def compare(results: Sequence[Result], question: Question = DEFAULT) -> Comparison:
    """Compare runs: one row per setting, in the order in which the settings first appear.

    Raises
    ------
    ConfigError
        If no run has the setting to group by, there is no such baseline, or no validation data for the best round.
    """
    question = question.of(results)
    columns = columns_of(results, question)
    rows = [Row(group, {each.key: each.of(group) for each in columns}) for group in grouped(results, question.by)]
    known = [each for each in columns if each.asked or any(row.values[each.key].is_measured for row in rows)]
    return Comparison(question, known, rows)
