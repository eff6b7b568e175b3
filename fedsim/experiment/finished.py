"""Runs, comparisons and partitions as Python and notebooks show them."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Self, overload

import numpy as np
import pandas as pd
from torch import nn

from fedsim.analysis.suite import MEASURES
from fedsim.experiment.kept_round import Metric, WantedRound
from fedsim.experiment.restored import restored_model
from fedsim.federation.data import FederatedData
from fedsim.results.files import read_json
from fedsim.results.report.comparing import comparison as comparing
from fedsim.results.report.comparing.columns import Column
from fedsim.results.report.comparing.comparable import unfinished_texts
from fedsim.results.report.comparing.export import as_csv, values_of
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.rows import Comparison as Compared
from fedsim.results.report.comparing.tables import Table, comparison_table, frame_of
from fedsim.results.report.comparing.units import format_missing
from fedsim.results.report.comparing.verdict import Verdict, verdict_of
from fedsim.results.result import Result
from fedsim.results.unfinished import is_finished
from fedsim.shortening import printable
from fedsim.training.metrics import format_metric, label


@dataclass(frozen=True)
class Round:
    """A round of a run that has just ended; accuracies are None where it has no evaluation.

    Parameters
    ----------
    run
        Name of the run: its strategy and seed.
    missing
        Number of clients that have no personalised accuracy and are not in its mean: their models are not finite, or
        they could not be evaluated.
    """

    run: str
    round: int
    personalised_accuracy: float | None = None
    global_accuracy: float | None = None
    missing: int = 0


class FinishedRun(Result):
    """A run with its records as DataFrames, and its models.

    Besides `metrics`, `communication`, `timing`, `barriers`, `participants` and `faults`, each table of the analysis
    that the run has is there under its name, such as ``distances``.
    """

    @classmethod
    def from_result(cls, result: Result) -> Self:
        """Return what was read of a run."""
        return cls(**{field.name: getattr(result, field.name) for field in fields(Result)})

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    @cached_property
    def participants(self) -> pd.DataFrame:
        """The clients that take part in each round; columns ``round, client``."""
        rounds = enumerate(read_json(self.folder.participants, list), start=1)
        rows = [(server_round, client) for server_round, clients in rounds for client in clients]
        return pd.DataFrame(rows, columns=["round", "client"])

    def __getattr__(self, name: str) -> pd.DataFrame:
        """Read a table of the analysis, which is empty if the run did not measure it."""
        if name not in MEASURES and name != "matching":
            raise AttributeError(f"a run has no {name!r}; tables of its analysis are: {', '.join(MEASURES)}")
        return self.measured(name)

    def model(
        self,
        client: int | None = None,
        *,
        round: WantedRound = "last",  # noqa: A002 (as `Round.round`)
        metric: Metric = "accuracy",
    ) -> nn.Module:
        """Return the global model, or the personalised one of a client as it was evaluated, in eval mode.

        Parameters
        ----------
        client
            Index of the client; without it, the global model.
        round
            The last round with a checkpoint, the ``best`` on the clients' validation data, or the number of a round.
        metric
            Metric of the best round, as `fedsim.compare` takes it.

        Raises
        ------
        ConfigError
            If there is no such client, the models of the round are not kept (``[checkpoints] keep``), or the data or
            the custom parts of the run are not there or have changed.
        """
        return restored_model(self.folder, client, round, metric)

    def __repr__(self) -> str:
        values = self.by_client("personalised")
        missing = format_missing(int(values.isna().sum()))
        value = f"{label(self.main)} {format_metric(self.main, values.mean())}{missing}"
        return printable(
            f"<run {self.strategy}, seed {self.config.seed}, {self.data}, {self.config.clients} clients: personalised "
            f"{value} after round {self.evaluated} of {self.config.rounds}, {self.path}>"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(str(self.path))}</p>{html_of(_table([self]))}"


class Runs(Sequence[FinishedRun]):
    """Runs, in the order in which they were started."""

    def __init__(self, runs: Iterable[FinishedRun]) -> None:
        self._runs = tuple(runs)

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, index: int) -> FinishedRun: ...

    @overload
    def __getitem__(self, index: slice) -> "Runs": ...

    def __getitem__(self, index: int | slice) -> "FinishedRun | Runs":
        return Runs(self._runs[index]) if isinstance(index, slice) else self._runs[index]

    def __add__(self, others: Iterable[FinishedRun]) -> "Runs":
        """Return these runs and others after them."""
        return Runs((*self, *others))

    def __repr__(self) -> str:
        return f"{len(self)} runs\n{text_of(_table(self))}" if self else "no runs"

    def _repr_html_(self) -> str:
        return html_of(_table(self)) if self else "no runs"


@dataclass(frozen=True, repr=False)
class Comparison:
    """Runs next to each other, seeds together.

    Parameters
    ----------
    question
        What they were asked.
    verdict
        Which method is best and how certain that is: its ``sentence``, and ``lights``, what weakens it.
    text
        The table as the command line prints it.
    csv
        The same with full precision, and all columns if none were named: accuracies and shares in [0, 1], amounts in
        bytes, examples and seconds. A text that a spreadsheet would take for a formula has an apostrophe before it.
    values
        The cells of the CSV without apostrophes, headings first.
    """

    question: Question
    verdict: Verdict
    text: Table
    csv: str
    values: Sequence[Sequence[str]]

    @classmethod
    def of(cls, compared: Compared, columns: Sequence[Column] | None = None) -> Self:
        """Return a comparison with some columns; by default the text has the compact ones, and the values have all."""
        of_values = compared.columns if columns is None else columns
        csv, values = as_csv(compared, of_values), list(values_of(compared, of_values))
        return cls(compared.question, verdict_of(compared), comparison_table(compared, columns), csv, values)

    @property
    def table(self) -> pd.DataFrame:
        """The values with full precision, and the half-widths of their 95 % intervals."""
        return frame_of(self.values).astype({"seeds": int})

    def __repr__(self) -> str:
        return "\n".join([*self.verdict.lines, "", text_of(self.text)])

    def _repr_html_(self) -> str:
        return "".join([*(f"<p>{html.escape(line)}</p>" for line in self.verdict.lines), html_of(self.text)])


@dataclass(frozen=True, repr=False)
class Partition:
    """How a data set is split across clients.

    Parameters
    ----------
    data
        The data set and, as ``data.split``, the positions that each client trains, validates and tests on.
    """

    data: FederatedData

    @property
    def label_counts(self) -> pd.DataFrame:
        """Number of examples by client and class, with a row per client and a column per class."""
        counts = self.data.heterogeneity().counts
        table = np.zeros((len(counts.offsets) - 1, counts.classes), dtype=np.int64)
        clients = np.repeat(np.arange(len(table)), np.diff(counts.offsets))
        table[clients, counts.labels] = counts.counts
        return pd.DataFrame(table, columns=list(self.data.dataset.classes)).rename_axis("client")

    @property
    def heterogeneity(self) -> pd.DataFrame:
        """How different the clients' labels are, with a row per client and a column per measure."""
        return pd.DataFrame(self.data.heterogeneity().by_client).rename_axis("client")

    def __repr__(self) -> str:
        config = self.data.config
        head = f"{config.data.name}, {config.partition.scheme}, {config.clients} clients, seed {config.seed}"
        return "\n".join([printable(head), *self.data.heterogeneity().summary()])

    def _repr_html_(self) -> str:
        return self.heterogeneity.describe().to_html()


def _table(runs: Sequence[Result]) -> Table:
    is_any = any(map(is_finished, runs))
    compared = comparing.compare(runs, Question(unfinished=not is_any))
    table = comparison_table(compared)
    return replace(table, notes=(*unfinished_texts(compared.results, compared.unfinished), *table.notes))


def _frame_of(table: Table) -> pd.DataFrame:
    return pd.DataFrame(list(table.rows), columns=list(table.headings))


def text_of(table: Table) -> str:
    """Return a table and its notes as lines."""
    return "\n".join([_frame_of(table).to_string(index=False), *table.notes])


def html_of(table: Table) -> str:
    """Return a table and its notes as a notebook shows them."""
    notes = [f"<p>{html.escape(note)}</p>" for note in table.notes]
    with pd.option_context("display.html.use_mathjax", False):  # names are no formulas
        return "".join([_frame_of(table).to_html(index=False), *notes])
