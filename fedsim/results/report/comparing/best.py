"""Which method is best in each setting, and which of the others cannot be told apart from it."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from fedsim.config.toml import without
from fedsim.results.differences import short_key
from fedsim.results.report.comparing.columns import Column
from fedsim.results.report.comparing.gains import Gain, gain_of
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.comparing.pairs import compared_setting, pairing_key
from fedsim.results.report.comparing.rows import Comparison, Row
from fedsim.results.report.comparing.statistics import LEVEL, holm
from fedsim.results.result import Result
from fedsim.results.tuning import tuned_settings

MAIN_COLUMN = "personalised"


@dataclass(frozen=True)
class Method:
    """A line of a comparison among those of the same setting.

    Parameters
    ----------
    name
        Its distinguishing part among the methods of the setting.
    row
        Its line.
    runs
        Its runs, by what they have in common with those of the other methods that they are paired with.
    """

    name: str
    row: Row
    runs: Mapping[str, Sequence[Result]]

    def pairs(self, other: "Method") -> list[tuple[Result, Result]]:
        """Return its runs, each with the run of another method with the same partition and seed."""
        found = [(own, other.runs.get(key, ())) for key, own in self.runs.items()]
        # Several of both, as where options are grouped, could be paired in several ways.
        return [pair for own, others in found if min(len(own), len(others)) == 1 for pair in product(own, others)]

    def gain(self, other: "Method", column: Column) -> Gain:
        """Return its gain over another method in a column."""
        return gain_of(self.pairs(other), column.values, higher_is_better=column.higher_is_better is not False)


@dataclass(frozen=True)
class Standing:
    """The methods of one setting, and what the best has over the others.

    Parameters
    ----------
    setting
        Swept settings and their values; empty if all methods have the same.
    ranking
        Those with a value, the best first, by their means over the seeds that all methods have.
    gains
        Gain of the best over each other method, by name.
    p
        P-values of these gains, corrected if that was asked for; NaN where fewer than two seeds are paired.
    """

    setting: Mapping[str, Any]
    methods: Sequence[Method]
    ranking: Sequence[Method]
    gains: Mapping[str, Gain]
    p: Mapping[str, float]

    @property
    def best(self) -> Method | None:
        """The method with the best mean, the first of equal ones; None if none has a value."""
        return next(iter(self.ranking), None)

    @property
    def ties(self) -> list[Method]:
        """The other methods that are not distinguishable from the best."""
        return [method for method in self.ranking[1:] if self.p[method.name] >= LEVEL]

    @property
    def untested(self) -> list[Method]:
        """The other methods with a value for which there is no test."""
        return [method for method in self.ranking[1:] if math.isnan(self.p[method.name])]


def best_and_ties(comparison: Comparison, column: str = MAIN_COLUMN) -> list[Standing]:
    """Return, for each swept setting, the best method and those that are not distinguishable from it.

    Parameters
    ----------
    column
        Key of a column in which one of two values is better.

    Raises
    ------
    KeyError
        If the comparison has no such column.
    """
    chosen = {each.key: each for each in comparison.columns}[column]
    ranked = [(setting, methods, _ranking(methods, chosen)) for setting, methods in methods_by_setting(comparison)]
    gains = [{method.name: ranking[0].gain(method, chosen) for method in ranking[1:]} for _, _, ranking in ranked]
    values = [gain.p for each in gains for gain in each.values()]
    p = iter(holm(values) if comparison.question.correct == "holm" else values)
    return [
        Standing(setting, methods, ranking, own, {name: float(next(p)) for name in own})
        for (setting, methods, ranking), own in zip(ranked, gains, strict=True)
    ]


def standing_of(rows: Sequence[Row], column: Column, free: Collection[str]) -> Standing:
    """Return which of some lines is best in a column.

    Parameters
    ----------
    free
        Settings in which runs may differ that are compared with each other.
    """
    methods = _methods(rows, [_settings_of(row) for row in rows], free)
    ranking = _ranking(methods, column)
    gains = {method.name: ranking[0].gain(method, column) for method in ranking[1:]}
    return Standing({}, methods, ranking, gains, {name: gain.p for name, gain in gains.items()})


def method_of(name: str, runs: Sequence[Result], comparison: Comparison) -> Method:
    """Return runs that are no line of a comparison as a method that its lines can be compared with."""
    row = Row(Group(name, {}, runs), {})
    return Method(name, row, _by_key(row.group, _free(comparison)))


def methods_by_setting(comparison: Comparison) -> list[tuple[Mapping[str, Any], list[Method]]]:
    """Return the methods of each swept setting.

    Methods differ in their strategy, or in the setting of a baseline such as ``local.lr=0.1``; what was tuned for each
    of them is part of it. Where each setting has one method only, the settings are the methods.
    """
    rows, free = comparison.rows, _free(comparison)
    known = [_settings_of(row) for row in rows]
    if comparison.question.by:
        return [({}, _methods(rows, known, free))]
    # The source of a custom method, and what a file that it names contains, are part of it.
    kept = [without(each, free) for each in known]
    swept = [key for key in kept[0] if len({str(each[key]) for each in kept}) > 1]
    settings = [{key: each[key] for key in swept} for each in kept]
    cells: dict[str, list[int]] = {}
    for place, setting in enumerate(settings):
        cells.setdefault(str(setting), []).append(place)
    if len(cells) > 1 and all(len(places) == 1 for places in cells.values()):
        return [({}, _methods(rows, known, free | set(known[0])))]
    return [
        (settings[places[0]], _methods([rows[place] for place in places], [known[place] for place in places], free))
        for places in cells.values()
    ]


def _free(comparison: Comparison) -> set[str]:
    """Return the settings in which runs may differ that are compared with each other."""
    return {compared_setting(comparison.question, comparison.results), *tuned_settings(comparison.results)}


def _settings_of(row: Row) -> dict[str, Any]:
    return {"strategy": row.group.label, **row.group.settings}


def _methods(rows: Sequence[Row], known: Sequence[Mapping[str, Any]], free: Collection[str]) -> list[Method]:
    """Return methods with names that tell them apart: the strategy if it does, else what differs too."""
    labels = [str(each["strategy"]) for each in known]
    if len(set(labels)) == len(labels):
        names = labels
    else:
        differing = [key for key in known[0] if len({str(each[key]) for each in known}) > 1]
        texts = [
            ", ".join(describe(key, each[key], "=", differing) for key in differing if str(each[key]) != "-")
            for each in known
        ]
        names = [
            text if texts.count(text) == 1 else f"{text} {row.group.members[0].setting}"
            for text, row in zip(texts, rows, strict=True)
        ]
    return [Method(name, row, _by_key(row.group, free)) for name, row in zip(names, rows, strict=True)]


def describe(key: str, value: Any, between: str = " ", keys: Iterable[str] = ()) -> str:
    """Return a setting, one of some keys, as a text has it, such as ``alpha 0.1``; a strategy by its name."""
    return str(value) if key == "strategy" else f"{short_key(key, keys)}{between}{value}"


def _by_key(group: Group, free: Collection[str]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in group.members:
        found.setdefault(pairing_key(result, free), []).append(result)
    return found


def _ranking(methods: Sequence[Method], column: Column) -> list[Method]:
    """Return the methods with a value, the best first; of equal ones the first."""
    means = _means(methods, column)
    known = [method for method in methods if method.name in means]
    return sorted(known, key=lambda method: means[method.name], reverse=column.higher_is_better is not False)


def _means(methods: Sequence[Method], column: Column) -> dict[str, float]:
    """Return the means of methods over what all have in common, or over their own runs if that is nothing, by name."""
    common = set.intersection(*(set(method.runs) for method in methods))
    means = {}
    for method in methods:
        runs = [run for key, each in method.runs.items() if key in common or not common for run in each]
        mean = column.of(Group("", {}, runs)).mean
        if not math.isnan(mean):
            means[method.name] = mean
    return means
