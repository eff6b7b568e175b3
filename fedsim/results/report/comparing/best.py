"""Which method is best in each setting, and which of the others cannot be told apart from it."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.results.report.comparing.columns import Column
from fedsim.results.report.comparing.gains import Gain, gain_of
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.comparing.pairs import pairing_key
from fedsim.results.report.comparing.rows import Comparison, Row
from fedsim.results.report.comparing.statistics import LEVEL
from fedsim.results.result import Result
from fedsim.results.tuning import tuned_settings

MAIN_COLUMN = "personalised"


@dataclass(frozen=True)
class Method:
    """A line of a comparison among those of the same setting.

    Parameters
    ----------
    name
        What tells it from the others of the setting.
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
        return [(own[0], others[0]) for own, others in found if len(own) == len(others) == 1]

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
    return [_standing(setting, methods, chosen) for setting, methods in methods_by_setting(comparison)]


def standing_of(rows: Sequence[Row], column: Column, free: Collection[str]) -> Standing:
    """Return which of some lines is best in a column.

    Parameters
    ----------
    free
        Settings in which runs may differ that are compared with each other.
    """
    return _standing({}, _methods(rows, free), column)


def _standing(setting: Mapping[str, Any], methods: Sequence[Method], column: Column) -> Standing:
    means = _means(methods, column)
    known = [method for method in methods if method.name in means]
    ranking = sorted(known, key=lambda method: means[method.name], reverse=column.higher_is_better is not False)
    gains = {method.name: ranking[0].gain(method, column) for method in ranking[1:]}
    return Standing(setting, methods, ranking, gains, {name: gain.p for name, gain in gains.items()})


def methods_by_setting(comparison: Comparison) -> list[tuple[Mapping[str, Any], list[Method]]]:
    """Return the methods of each swept setting; where each has one only, the settings are the methods."""
    tuned = tuned_settings(comparison.results)
    cells: dict[str, list[Row]] = {}
    swept = [{key: value for key, value in row.group.settings.items() if key not in tuned} for row in comparison.rows]
    for row, setting in zip(comparison.rows, swept, strict=True):
        cells.setdefault(str(setting), []).append(row)
    free = {comparison.question.by or "strategy", *tuned}
    if len(cells) > 1 and all(len(rows) == 1 for rows in cells.values()):
        return [({}, _methods(comparison.rows, free | set(swept[0])))]
    settings = {str(setting): setting for setting in swept}
    return [(settings[key], _methods(rows, free)) for key, rows in cells.items()]


def _methods(rows: Sequence[Row], free: Collection[str]) -> list[Method]:
    labels = [row.group.label for row in rows]
    names = [row.group.label if labels.count(row.group.label) == 1 else _settings_name(row.group) for row in rows]
    return [Method(name, row, _by_key(row.group, free)) for name, row in zip(names, rows, strict=True)]


def _settings_name(group: Group) -> str:
    return group.name


def _by_key(group: Group, free: Collection[str]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in group.members:
        found.setdefault(pairing_key(result, free), []).append(result)
    return found


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
