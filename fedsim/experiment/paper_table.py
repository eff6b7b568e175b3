"""A table of a paper, as Python users and ``fedsim table`` make it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from fedsim.errors import ConfigError
from fedsim.experiment.api import Paths, results_of
from fedsim.experiment.finished import FinishedRun, Runs, html_of, text_of
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.pivot import SPREADS, Pivot, Spread, lines_of, pivot_of
from fedsim.results.report.comparing.pivot_text import pivot_csv, pivot_latex, pivot_markdown, pivot_table
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.tables import Table, frame_of

MARKS = ("best", "none")


@dataclass(frozen=True, repr=False)
class PaperTable:
    """A measure of methods by the values of settings.

    Parameters
    ----------
    pivot
        The cells.
    spread
        Spread shown after ±.
    marks
        Whether the best of a column and its ties are marked.
    """

    pivot: Pivot
    spread: Spread = "std"
    marks: bool = True

    @property
    def table(self) -> pd.DataFrame:
        """Each cell's mean, std and half_width with full precision, and whether it is the best or a tie."""
        found = frame_of(lines_of(self.pivot))
        return found.assign(best=found["best"] == "true", tie=found["tie"] == "true").astype({"seeds": int})

    @property
    def text(self) -> Table:
        """The table as the command line prints it."""
        return pivot_table(self.pivot, self.spread, marks=self.marks)

    @property
    def latex(self) -> str:
        """The table as a LaTeX ``tabular``; its first line says which packages it needs."""
        return pivot_latex(self.pivot, self.spread, marks=self.marks)

    @property
    def markdown(self) -> str:
        """The table as Markdown of GitHub's kind."""
        return pivot_markdown(self.pivot, self.spread, marks=self.marks)

    @property
    def csv(self) -> str:
        """The rows of ``table`` as CSV."""
        return pivot_csv(self.pivot)

    def __repr__(self) -> str:
        return text_of(self.text)

    def _repr_html_(self) -> str:
        return html_of(self.text)


def table(
    runs: Runs | Iterable[FinishedRun] | Paths,
    *,
    pivot: str | Sequence[str] | None = None,
    column: str = "personalised",
    metric: str = "accuracy",
    at: Literal["last", "best"] = "last",
    bold: Literal["best", "none"] = "best",
    spread: Spread = "std",
    unfinished: bool = False,
) -> PaperTable:
    """Return a table for a paper: methods by the values of a setting, each a mean over the seeds with its spread.

    Parameters
    ----------
    runs
        Results, or paths as `load` takes them.
    pivot
        Dotted setting whose values are the columns, or several; by default those in which the runs differ.
    column
        Measure in the cells: a column of `compare` by its name in the CSV, or by its heading.
    metric, at, unfinished
        As in `compare`.
    bold
        Whether the best of each column is marked, and the methods that are not distinguishable from it.
    spread
        What follows the mean: standard deviation over the seeds, half-width of the 95 % interval, or nothing.

    Raises
    ------
    ConfigError
        If there is no such run, setting or measure, or no run is finished.
    """
    for name, value, known in (("spread", spread, SPREADS), ("bold", bold, MARKS)):
        if value not in known:
            raise ConfigError(f"--{name} {value!r} must be one of {', '.join(known)}")
    texts = [pivot] if isinstance(pivot, str) else pivot
    settings = None if texts is None else [each.strip() for text in texts for each in text.split(",")]
    compared = compare(results_of(runs), Question(metric=metric, at=at, unfinished=unfinished))
    return PaperTable(pivot_of(compared, settings, column), spread, bold == "best")
