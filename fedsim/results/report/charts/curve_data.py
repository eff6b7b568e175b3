"""What curves are drawn from: values of each line by round, with what was spent up to there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from fedsim.results.report.charts.compact import thinned
from fedsim.results.report.comparing import costs
from fedsim.results.report.comparing.groups import Group, by_seed
from fedsim.results.report.facets import Panel, lines_of
from fedsim.results.report.palette import Look, look
from fedsim.results.result import Result
from fedsim.training.metrics import LOSS, is_selecting, label, metric_of

X_AXES = ("round", costs.BYTES, costs.PASSES, "seconds")
MOST_ROWS, FEWEST_ROUNDS = 6_000, 20  # of one chart, so that a page with 100 runs stays small


@dataclass(frozen=True)
class Measure:
    """What is on the vertical axis.

    Parameters
    ----------
    key
        Name of its column with the mean; ``low_`` and ``high_`` before it name those of the band.
    """

    key: str
    title: str
    metric: str

    @property
    def is_share(self) -> bool:
        """Whether it is written in percent."""
        return metric_of(self.metric).unit == "share"


@dataclass(frozen=True)
class Curves:
    """Lines over the rounds.

    Parameters
    ----------
    rows
        Columns ``line`` (its place among the lines), ``name`` (which gives its look), ``panel``, ``round``, what was
        spent up to the round, and those of the measures. A line that spends nothing has one further row for that cost,
        named by ``free``, whose values are those of the last round.
    looks
        Of all names, in the order of the legend.
    """

    rows: pd.DataFrame
    looks: Mapping[str, Look]
    measures: Sequence[Measure]


def curves_of_panels(panels: Sequence[Panel], metric: str | None = None) -> Curves:
    """Return a line per setting: means over the seeds, with bands from the lowest to the highest seed.

    Parameters
    ----------
    metric
        What is shown first, before the main metric and the loss.
    """
    lines = [(line, panel.title) for panel in panels for line in panel.lines]
    main = lines[0][0].group.members[0].main
    measures = _measures(dict.fromkeys((metric or main, main, LOSS)))
    most = max(FEWEST_ROUNDS, MOST_ROWS // len(lines))
    tables = [
        _with_free(_of_group(line.group, measures, most)).assign(line=number, name=line.name, panel=title)
        for number, (line, title) in enumerate(lines)
    ]
    rows = pd.concat(tables, ignore_index=True)
    return Curves(rows, {name: line.look for name, line in lines_of(panels).items()}, measures)


def curves_of_run(result: Result) -> Curves:
    """Return the lines of a run: its personalised and global models, with the clients' band from 10 % to 90 %."""
    lines = {
        "personalised, clients' own test data": (lambda metric: result.mean_by_round("personalised", metric)),
        "global, clients' own test data": (lambda metric: result.mean_by_round("global", metric)),
        "global, server's test data": (lambda metric: result.on_server("global", metric)),
    }
    metrics = list(dict.fromkeys((result.main, LOSS, *filter(is_selecting, sorted(result.metric_names)))))
    measures = [Measure(f"m{place}", label(metric, capital=True), metric) for place, metric in enumerate(metrics)]
    spent = _spent([result])
    tables = []
    for number, (name, of) in enumerate(lines.items()):
        columns = {}
        for measure in measures:
            values = of(measure.metric)
            columns[measure.key] = values
            if not number:
                own = result.of("personalised", measure.metric).groupby("round")["value"]
                for side, share in (("low", 0.1), ("high", 0.9)):
                    columns[f"{side}_{measure.key}"] = own.quantile(share).where(values.notna())
        table = pd.DataFrame(columns)
        table = table.loc[thinned(table.index, MOST_ROWS // len(lines))].join(spent)
        tables.append(_with_free(_as_rows(table)).assign(line=number, name=name, panel=""))
    return Curves(pd.concat(tables, ignore_index=True), {name: look(n) for n, name in enumerate(lines)}, measures)


def _measures(metrics: Iterable[str]) -> list[Measure]:
    """Return what groups are compared by: metrics of both kinds of models."""
    return [
        Measure(f"{short}{place}", f"{label(metric)}, {which}", metric)
        for place, metric in enumerate(metrics)
        for short, which in (("p", "personalised"), ("g", "global"))
    ]


def _of_group(group: Group, measures: Sequence[Measure], most: int) -> pd.DataFrame:
    columns = {}
    for measure in measures:
        values = by_seed(group.members, partial(_values, measure))
        columns[measure.key] = values.mean(axis=1, skipna=False)
        if group.seeds > 1:
            columns[f"low_{measure.key}"] = values.min(axis=1, skipna=False)
            columns[f"high_{measure.key}"] = values.max(axis=1, skipna=False)
    table = pd.DataFrame(columns)
    return _as_rows(table.loc[thinned(table.index, most)].join(_spent(group.members)))


def _values(measure: Measure, result: Result) -> pd.Series:
    own = measure.key.startswith("p")
    return result.mean_by_round(metric=measure.metric) if own else result.on_server("global", measure.metric)


def _spent(members: Sequence[Result]) -> pd.DataFrame:
    """Return the mean cost over the seeds up to each round."""
    return pd.DataFrame(
        {what: by_seed(members, partial(costs.spent, what=what)).mean(axis=1, skipna=False) for what in X_AXES[1:]}
    )


def _as_rows(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename_axis("round").reset_index()


def _with_free(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with one more for each cost of which nothing is spent: a horizontal line."""
    more = []
    for what in costs.FREE:
        if len(rows) and not rows[what].fillna(1).any():
            rows = rows.assign(**{what: np.nan})
            more.append(rows.tail(1).assign(free=what, **dict.fromkeys(X_AXES, np.nan)))
    return pd.concat([rows.assign(free=None), *more], ignore_index=True)
