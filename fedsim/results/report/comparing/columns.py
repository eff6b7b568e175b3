"""The measures that a comparison shows, each as a function of the runs of one line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd

from fedsim.errors import ConfigError
from fedsim.results.report.comparing import costs
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.comparing.pairs import Baseline, Gain, reference
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.statistics import Interval, jain, worst_mean
from fedsim.results.report.comparing.units import format_bytes, format_count
from fedsim.results.result import Result

Kind = Literal["score", "difference", "share", "index", "bytes", "count", "seconds"]
NAN = float("nan")


@dataclass(frozen=True)
class Column:
    """A measure of a group of runs.

    Parameters
    ----------
    key
        Name in files and on the command line.
    compact
        Whether a table shows it by default.
    asked
        Whether it is shown even if no run has a value.
    """

    key: str
    heading: str
    kind: Kind
    of: Callable[[Group], Interval]
    compact: bool = True
    asked: bool = False


def columns_of(results: Sequence[Result], question: Question) -> list[Column]:
    """Return the measures that answer a question about these runs.

    Raises
    ------
    ConfigError
        If there is no such baseline, or it stands for more than one run.
    """
    columns = _outcomes(question) + _references(results, question)
    if question.baseline is not None:
        columns += _against(Baseline(question.baseline, results), question)
    columns += _costs(question) + _at_equal_costs(results, question)
    return columns if question.target is None else columns + _to_target(question, question.target)


def _column(
    key: str, heading: str, kind: Kind, of: Callable[[Result], float], *, compact: bool = True, asked: bool = False
) -> Column:
    return Column(key, heading, kind, lambda group: group.mean(of), compact, asked)


def _clients(question: Question, result: Result, model: str = "personalised", split: str = "test") -> pd.Series:
    return result.by_client(model, question.metric, split=split, server_round=question.round_of(result))


def _outcomes(question: Question) -> list[Column]:
    clients, better = partial(_clients, question), question.higher_is_better

    def mean(model: str, split: str = "test") -> Callable[[Result], float]:
        def of(result: Result) -> float:
            values = clients(result, model, split).to_numpy(dtype=float)
            return float(values.mean()) if len(values) else NAN

        return of

    def on_server(result: Result) -> float:
        return float(result.on_server("global", question.metric).get(question.round_of(result), NAN))

    def worst(result: Result) -> float:
        return worst_mean(clients(result), higher_is_better=better)

    return [
        _column("rounds", "rounds", "count", lambda result: float(question.round_of(result))),
        _column("personalised", "personalised", "score", mean("personalised")),
        _column("std", "std", "score", lambda result: float(clients(result).to_numpy().std())),
        _column("worst", "worst 10 %", "score", worst),
        _column("jain", "Jain", "index", lambda result: jain(clients(result)), compact=False),
        _column("global", "global", "score", on_server),
        _column("global_clients", "global, clients", "score", mean("global"), compact=False),
        _column("fine_tuned", "fine-tuned", "score", mean("fine-tuned")),
        _column("unseen", "unseen", "score", mean("personalised", "unseen")),
        _column("unseen_fine_tuned", "unseen, tuned", "score", mean("fine-tuned", "unseen"), compact=False),
    ]


def _gain(baseline: Baseline, question: Question, group: Group) -> Gain:
    return baseline.gain(group.members, partial(_clients, question), higher_is_better=question.higher_is_better)


def _share(key: str, baseline: Baseline, question: Question, *, asked: bool = False) -> Column:
    """Return the share of the clients that are better off than under a baseline, over all seeds."""

    def of(group: Group) -> Interval:
        return Interval(_gain(baseline, question, group).share)

    return Column(key, f"> {baseline.name}", "share", of, asked=asked)


def _references(results: Sequence[Result], question: Question) -> list[Column]:
    """Return the gains over local training and over plain averaging, if such runs are compared."""
    names = [name for name in ("local", "full", "fedavg") if name != question.baseline]
    found = [(name, reference(name, results)) for name in names]
    return [_share(f"gain_{name}", baseline, question) for name, baseline in found if baseline is not None]


def _against(baseline: Baseline, question: Question) -> list[Column]:
    gain = partial(_gain, baseline, question)
    return [
        _share("gain_baseline", baseline, question, asked=True),
        Column("difference", f"vs {baseline.name}", "difference", lambda group: gain(group).difference, asked=True),
        Column("pairs", "pairs", "count", lambda group: Interval(float(gain(group).seeds) or NAN), asked=True),
    ]


def _costs(question: Question) -> list[Column]:
    def until(what: str, result: Result) -> float:
        return float(costs.spent(result, what).loc[question.round_of(result)])

    kinds: dict[str, Kind] = {"up": "bytes", "down": "bytes", "passes": "count", "seconds": "seconds"}
    return [_column(what, what, kind, partial(until, what)) for what, kind in kinds.items()]


def _at_equal_costs(results: Sequence[Result], question: Question) -> list[Column]:
    """Return the values at the budgets asked for; otherwise, among all columns only, at the smallest total."""
    columns = []
    for what in costs.COSTS:
        asked = what in question.budgets
        budget = question.budgets.get(what) or costs.least_total(results, what)
        if asked and budget is None:
            raise ConfigError(
                f"--budget {what}: no run has spent any, so there is no smallest total; give {what}=AMOUNT"
            )
        if budget is not None:
            heading = f"at {format_bytes(budget) if what == costs.BYTES else f'{format_count(budget)} passes'}"
            of = partial(costs.value_within, what=what, budget=budget, metric=question.metric)
            columns.append(_column(f"at_{what}", heading, "score", of, compact=asked, asked=asked))
    return columns


def _to_target(question: Question, target: float) -> list[Column]:
    goal = f"{100 * target:g} %" if question.metric == "accuracy" else f"{target:g}"
    kinds: dict[str, Kind] = {costs.BYTES: "bytes", costs.PASSES: "count"}
    return [
        _column(
            f"{what}_to_target",
            f"{what} to {goal}",
            kind,
            partial(costs.spent_until, what=what, target=target, metric=question.metric),
            asked=True,
        )
        for what, kind in kinds.items()
    ]
