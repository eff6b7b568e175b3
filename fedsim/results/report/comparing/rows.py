"""What a comparison holds: a line per setting, with the value of each measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsim.results.report.comparing.columns import Column
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.statistics import Value
from fedsim.results.result import Result


@dataclass(frozen=True)
class Row:
    """One line of a comparison; values by the keys of the columns."""

    group: Group
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Comparison:
    """Rows and their columns; a measure that no run has gets no column, unless it was asked for.

    Parameters
    ----------
    unfinished
        Runs that are left out, as they are not finished.
    """

    question: Question
    columns: Sequence[Column]
    rows: Sequence[Row]
    unfinished: Sequence[Result] = ()

    @property
    def results(self) -> list[Result]:
        """All runs that are compared."""
        return [result for row in self.rows for result in row.group.members]
