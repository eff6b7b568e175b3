"""Comparison of runs: one row per setting, with the mean over its seeds of each measure."""

from collections.abc import Sequence

from fedsim.results.report.comparing.columns import columns_of
from fedsim.results.report.comparing.comparable import comparable
from fedsim.results.report.comparing.groups import grouped
from fedsim.results.report.comparing.p_values import with_p_values
from fedsim.results.report.comparing.pairs import Baseline
from fedsim.results.report.comparing.question import DEFAULT, Question
from fedsim.results.report.comparing.rows import Comparison, Row
from fedsim.results.result import Result


def compare(results: Sequence[Result], question: Question = DEFAULT) -> Comparison:
    """Compare runs: one row per setting, in the order in which the settings first appear.

    Raises
    ------
    ConfigError
        If no run has the setting to group by, there is no such baseline, no validation data for the best round, or no
        run is finished.
    """
    results, unfinished = comparable(results, question)
    question = question.of(results)
    baseline = Baseline(question.baseline, results, question) if question.baseline else None
    columns = columns_of(results, question, baseline)
    rows = [Row(group, {each.key: each.of(group) for each in columns}) for group in grouped(results, question.by)]
    known = [each for each in columns if each.asked or any(row.values[each.key].is_measured for row in rows)]
    return with_p_values(Comparison(question, known, rows, unfinished), baseline)
