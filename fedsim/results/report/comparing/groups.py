"""Runs that differ only in their seed."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd

from fedsim.config.choices import CATALOGUES
from fedsim.config.toml import flat
from fedsim.errors import ConfigError
from fedsim.results.differences import distinguishing_settings
from fedsim.results.report.comparing.statistics import Interval, interval
from fedsim.results.result import Result

METHOD = "strategy"  # the method with its options, which is no single setting


@dataclass(frozen=True)
class Group:
    """The runs of one line: those that differ only in their seed, or that share a value of a setting.

    Parameters
    ----------
    settings
        What distinguishes this line from the others, besides the label.
    """

    label: str
    settings: Mapping[str, Any]
    members: Sequence[Result]

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len({result.config.seed for result in self.members})

    @property
    def registered(self) -> str:
        """The label with the strategy's name in the settings."""
        first = self.members[0]
        return registered_label(first) if self.label == first.strategy else self.label

    @property
    def name(self) -> str:
        """The label with the settings."""
        return ", ".join([self.label, *(f"{key}={value}" for key, value in self.settings.items())])

    def mean(self, of: Callable[[Result], float], missing: Callable[[Result], int] = lambda _: 0) -> Interval:
        """Return the mean over the seeds; runs of one seed count as one. NaN if the value of a run is.

        Parameters
        ----------
        missing
            Number of values that a run's value lacks.
        """
        by_seed: dict[int, list[float]] = {}
        for result in self.members:
            by_seed.setdefault(result.config.seed, []).append(of(result))
        found = interval([float(np.mean(values)) for values in by_seed.values()])
        return replace(found, missing=sum(map(missing, self.members)))


def by_seed(members: Iterable[Result], of: Callable[[Result], pd.Series]) -> pd.DataFrame:
    """Return values by round over the rounds that all runs have, a column per seed: the mean over its runs.

    It is NaN where a run has none.
    """
    values: dict[int, list[pd.Series]] = {}
    for result in members:
        values.setdefault(result.config.seed, []).append(of(result))
    means = [pd.concat(each, axis=1, join="inner").mean(axis=1, skipna=False) for each in values.values()]
    return pd.concat(means, axis=1, join="inner", keys=list(values))


def grouped(results: Sequence[Result], by: str | None = None) -> list[Group]:
    """Return the runs by all settings except the seed, or by one of them, in the order of their first runs.

    Parameters
    ----------
    by
        A setting, or ``strategy`` for the methods with their options, over whatever else differs.

    Raises
    ------
    ConfigError
        If no run has the setting ``by``.
    """
    members: dict[str, list[Result]] = {}
    for result in results:
        members.setdefault(_setting(result, by) if by else result.setting, []).append(result)
    if by:
        if by != METHOD:
            check_setting(results, by, "--by")
        return [Group(name, {}, runs) for name, runs in members.items()]
    settings = distinguishing_settings([runs[0] for runs in members.values()])
    return [Group(runs[0].strategy, each, runs) for runs, each in zip(members.values(), settings, strict=True)]


def check_setting(results: Sequence[Result], key: str, option: str) -> None:
    """Check that some runs have a setting.

    Raises
    ------
    ConfigError
        If none has.
    """
    if all(result.shown_settings.get(key, "-") == "-" for result in results):
        known = sorted({each for result in results for each in flat(result.config.model_dump(mode="json"))})
        near = get_close_matches(key, [*known, METHOD] if option == "--by" else known, n=1) or sorted(
            (each for each in known if each.endswith(f".{key}")), key=lambda each: each.count(".")
        )
        hint = f"did you mean {near[0]!r}?" if near else "for instance strategy.name or partition.alpha"
        raise ConfigError(f"{option} {key!r} is not a setting of these runs; {hint}")


def registered_label(result: Result) -> str:
    """Return a run's strategy by its name in the settings, with the options that differ from their defaults."""
    return CATALOGUES["strategies"].registered_label(result.config.strategy, _changed_options(result))


def label_without(result: Result, options: Collection[str]) -> str:
    """Return a run's strategy as it is shown, as if some of its options had not been set."""
    choice = result.config.strategy
    left = {key: value for key, value in choice.model_dump().items() if key not in options}
    changed = [key for key in _changed_options(result) if key not in options]
    return CATALOGUES["strategies"].label(type(choice).model_validate(left), changed)


def _changed_options(result: Result) -> list[str]:
    keys = [key.split(".")[1] for key in result.changed_settings if key.startswith("strategy.")]
    return list(dict.fromkeys(keys))


def _setting(result: Result, key: str) -> str:
    if key == METHOD:
        return result.strategy
    if key == "strategy.name":  # of which one may be several methods, such as FedPer and LG-FedAvg
        return f"{key}={CATALOGUES['strategies'].name_of(result.config.strategy)}"
    return f"{key}={result.shown_settings.get(key, '-')}"
