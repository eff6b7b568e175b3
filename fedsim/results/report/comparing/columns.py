"""The measures that a comparison shows, each as a function of the runs of one line."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd

from fedsim.config.choices import CATALOGUES
from fedsim.errors import ConfigError
from fedsim.results.report.comparing import costs
from fedsim.results.report.comparing.gains import Gain, Values
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.comparing.pairs import Baseline, reference
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.small_clients import few_examples
from fedsim.results.report.comparing.statistics import Interval, Tally, Value, jain, worst_mean
from fedsim.results.report.comparing.units import format_bytes, format_count
from fedsim.results.result import Result

Kind = Literal["score", "difference", "clients", "index", "bytes", "count", "seconds", "p"]
NAN = float("nan")
# Priorities: the question itself, whom it helps, what it costs, and details.
ANSWER, SECOND, GAIN, COST, SPREAD, OTHER = range(1, 7)


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
    priority
        Which columns a narrow terminal shows: those with the lowest numbers, as far as they fit.
    by_client
        Value of each client of a run, by its index, if the measure is their mean.
    higher_is_better
        Which of two values is the better one; None if neither is.
    note
        What must be said below a table that shows it.
    at_round
        Whether it is of the round that the question asks for, not at an amount spent or a value reached.
    """

    key: str
    heading: str
    kind: Kind
    of: Callable[[Group], Value]
    compact: bool = True
    asked: bool = False
    priority: int = OTHER
    by_client: Values | None = None
    higher_is_better: bool | None = None
    note: str = ""
    at_round: bool = True

    def values(self, result: Result) -> pd.Series:
        """Return the values of a run that those of another one are compared with: of its clients, or the run's own."""
        if self.by_client is not None:
            return self.by_client(result)
        return pd.Series([self.of(Group("", {}, [result])).mean])


def columns_of(results: Sequence[Result], question: Question, baseline: Baseline | None = None) -> list[Column]:
    """Return the measures that answer a question about these runs.

    Raises
    ------
    ConfigError
        If a budget is to be the smallest total, and no run has spent any.
    """
    columns = _outcomes(question) + _left_out(results) + _references(results, question)
    if baseline is not None:
        columns += _against(baseline, question)
    columns += _costs(results, question) + _at_equal_costs(results, question)
    return columns if question.target is None else columns + _to_target(question, question.target)


def _column(
    key: str,
    heading: str,
    kind: Kind,
    of: Callable[[Result], float],
    *,
    compact: bool = True,
    asked: bool = False,
    priority: int = OTHER,
    higher_is_better: bool | None = None,
) -> Column:
    return Column(
        key, heading, kind, lambda group: group.mean(of), compact, asked, priority, higher_is_better=higher_is_better
    )


def _clients(question: Question, result: Result, model: str = "personalised", split: str = "test") -> pd.Series:
    return result.by_client(model, question.metric, split=split, server_round=question.round_of(result)).astype(float)


def _over_clients(
    question: Question,
    key: str,
    heading: str,
    statistic: Callable[[pd.Series], float],
    model: str = "personalised",
    split: str = "test",
    *,
    kind: Kind = "score",
    compact: bool = True,
    asked: bool = False,
    priority: int = OTHER,
    higher_is_better: bool | None = None,
) -> Column:
    """Return a statistic over the clients that have a value; the number of the others comes with it."""

    def of(result: Result) -> float:
        known = _clients(question, result, model, split).dropna()
        return float(statistic(known)) if len(known) else NAN

    def missing(result: Result) -> int:
        return int(_clients(question, result, model, split).isna().sum())

    by_client = partial(_clients, question, model=model, split=split) if statistic is _mean else None
    is_higher = question.higher_is_better if higher_is_better is None else higher_is_better
    return Column(
        key, heading, kind, lambda group: group.mean(of, missing), compact, asked, priority, by_client, is_higher
    )


def _outcomes(question: Question) -> list[Column]:
    over_clients = partial(_over_clients, question)

    def on_server(result: Result) -> pd.Series:
        values = result.on_server("global", question.metric)
        return values[values.index == question.round_of(result)]

    def of_server(group: Group) -> Interval:
        return group.mean(lambda result: float(on_server(result).mean()), lambda result: on_server(result).isna().sum())

    def weighted(result: Result) -> float:
        rows = result.of("personalised", question.metric)
        known = rows[(rows["round"] == question.round_of(result)) & rows["value"].notna()]
        return float(np.average(known["value"].astype(float), weights=known["n"])) if len(known) else NAN

    def worst(values: pd.Series) -> float:
        return worst_mean(values, higher_is_better=question.higher_is_better)

    return [
        _column("rounds", "rounds", "count", lambda result: float(question.round_of(result) or NAN)),
        over_clients("personalised", "personalised", _mean, asked=True, priority=ANSWER),
        _column("weighted", "weighted", "score", weighted, compact=False, higher_is_better=question.higher_is_better),
        over_clients("std", "std", lambda values: float(values.std(ddof=0)), priority=SPREAD, higher_is_better=False),
        over_clients("worst", "worst 10 %", worst, priority=SPREAD),
        over_clients("jain", "Jain", jain, kind="index", compact=False, higher_is_better=True),
        Column("global", "global", "score", of_server, priority=SECOND, higher_is_better=question.higher_is_better),
        over_clients("validation", "validation", _mean, split="validation", compact=False),
        over_clients("global_clients", "global, clients", _mean, "global", compact=False),
        over_clients("fine_tuned", "fine-tuned", _mean, "fine-tuned", priority=SECOND),
        over_clients("knn", "kNN", _mean, "knn", priority=SECOND),
        over_clients("unseen", "unseen", _mean, "personalised", "unseen", priority=SECOND),
        over_clients("unseen_fine_tuned", "unseen, tuned", _mean, "fine-tuned", "unseen", compact=False),
    ]


def _mean(values: pd.Series) -> float:
    return float(values.mean())


def _left_out(results: Sequence[Result]) -> list[Column]:
    """Return the number of updates that are left out of averages, if any is."""

    def of(group: Group) -> Interval:
        return Interval(float(sum(result.left_out for result in group.members)))

    return (
        [Column("left_out", "left out", "count", of, priority=GAIN)]
        if any(result.left_out for result in results)
        else []
    )


def _gain(baseline: Baseline, question: Question, group: Group) -> Gain:
    return baseline.gain(group.members, partial(_clients, question), higher_is_better=question.higher_is_better)


def _tally(key: str, baseline: Baseline, question: Question, *, asked: bool = False) -> Column:
    """Return how many clients are better off than under a baseline, as well off, and worse off, over all seeds."""

    def of(group: Group) -> Tally:
        gain = _gain(baseline, question, group)
        few = sum(len(few_examples(result, question)) for result, _ in baseline.pairs(group.members))
        return Tally(gain.better, gain.equal, gain.worse, gain.difference.missing, few)

    return Column(key, f"> / = / < {baseline.name}", "clients", of, asked=asked, priority=GAIN)


def _references(results: Sequence[Result], question: Question) -> list[Column]:
    """Return the gains over local training and over plain averaging, if such runs are compared."""
    baseline = CATALOGUES["strategies"].canonical(question.baseline or "")
    names = [name for name in ("local", "full") if name != baseline]
    found = [(name, reference(name, results)) for name in names]
    return [_tally(f"gain_{name}", baseline, question) for name, baseline in found if baseline is not None]


def _against(baseline: Baseline, question: Question) -> list[Column]:
    gain = partial(_gain, baseline, question)
    return [
        _tally("gain_baseline", baseline, question, asked=True),
        Column(
            "difference",
            f"vs {baseline.name}",
            "difference",
            lambda group: gain(group).difference,
            asked=True,
            priority=ANSWER,
            note=baseline.note,
        ),
        Column("pairs", "pairs", "count", lambda group: Interval(float(gain(group).seeds) or NAN), asked=True),
    ]


def _costs(results: Sequence[Result], question: Question) -> list[Column]:
    def until(what: str, result: Result) -> float:
        return float(costs.spent(result, what).get(question.round_of(result), NAN))

    kinds: dict[str, Kind] = {"up": "bytes", "down": "bytes", "passes": "count", "seconds": "seconds"}
    if any(len(result.simulated_seconds) for result in results):
        kinds["simulated"] = "seconds"
    priorities = {"up": COST}
    return [
        _column(what, what, kind, partial(until, what), priority=priorities.get(what, OTHER), higher_is_better=False)
        for what, kind in kinds.items()
    ]


def _at_equal_costs(results: Sequence[Result], question: Question) -> list[Column]:
    """Return the values at the budgets asked for; otherwise, in all columns only, at the least total by partition."""
    columns = []
    for what in costs.COSTS:
        asked, fixed = what in question.budgets, question.budgets.get(what)
        least = costs.least_totals(results, what)
        if asked and not fixed and not least:
            raise ConfigError(
                f"--budget {what}: no run has spent any, so there is no smallest total; give {what}=AMOUNT"
            )
        if fixed or least:
            columns.append(_at_cost(what, question, {} if fixed else least, fixed))
    return columns


def _at_cost(what: str, question: Question, least: Mapping[str, float], fixed: float | None) -> Column:
    write = format_bytes if what == costs.BYTES else lambda amount: f"{format_count(amount)} passes"

    def read(result: Result) -> costs.Read:
        budget = fixed or least.get(result.partition_name)
        # Where no run of a partition spends anything, all of them are compared at their ends.
        return costs.value_within(result, what, math.inf if budget is None else budget, question.metric)

    amounts = list(dict.fromkeys(map(write, [fixed] if fixed else sorted(least.values()))))
    asked, equal = what in question.budgets, f"at equal {what}"
    range_of = f"{equal}: the smallest total of a run with the same partition and seed, {amounts[0]} to {amounts[-1]}"
    return Column(
        f"at_{what}",
        f"at {amounts[0]}" if len(amounts) == 1 else equal,
        "score",
        partial(_mean_of_reads, read),
        compact=asked,
        asked=asked,
        priority=ANSWER,
        higher_is_better=question.higher_is_better,
        note="" if len(amounts) == 1 else range_of,
        at_round=False,
    )


def _mean_of_reads(read: Callable[[Result], costs.Read], group: Group) -> Interval:
    reads = {id(result): read(result) for result in group.members}
    found = group.mean(lambda result: reads[id(result)].value)
    return replace(found, interpolated=found.is_known and any(each.interpolated for each in reads.values()))


def _to_target(question: Question, target: float) -> list[Column]:
    goal = f"{100 * target:g} %" if question.is_share else f"{target:g}"
    kinds: dict[str, Kind] = {costs.ROUNDS: "count", costs.BYTES: "bytes", costs.PASSES: "count"}
    kinds |= {costs.SECONDS: "seconds"}
    smoothed = f"running mean of {question.smooth} evaluations" if question.smooth > 1 else "mean"
    read = partial(costs.spent_until, target=target, metric=question.metric, evaluations=question.smooth)
    note = f"to {goal}: until the clients' {smoothed} on validation data reaches it; -: a seed never does"
    return [
        Column(
            f"{what}_to_target",
            f"{what} to {goal}",
            kind,
            partial(_mean_of_reads, partial(read, what=what)),
            compact=what != costs.SECONDS,
            asked=True,
            priority=ANSWER,
            higher_is_better=False,
            note=note,
            at_round=False,
        )
        for what, kind in kinds.items()
    ]
