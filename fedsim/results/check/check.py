"""``fedsim check``: whether runs meet the expectations of their experiment."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fedsim.config import Config, as_toml
from fedsim.config.choices import CATALOGUES, is_name
from fedsim.config.config import WITHOUT_EFFECT
from fedsim.config.expectation import Expectation, Verdict
from fedsim.config.toml import flat
from fedsim.errors import ConfigError
from fedsim.results.check.bounds import Bounds, of_mean, of_ratio
from fedsim.results.check.selection import in_group, measured_rows, of_kind
from fedsim.results.differences import distinguishing_settings
from fedsim.results.result import Result
from fedsim.results.tuning import tuned_settings
from fedsim.results.unfinished import is_finished


@dataclass(frozen=True)
class Check:
    """An expectation of runs that differ only in their seed, and the value that they have.

    Parameters
    ----------
    runs
        What distinguishes these runs from the others; empty if there are no others.
    bounds
        The mean over the seeds, compared as the expectation says, with its interval.
    """

    expectation: Expectation
    runs: str
    seeds: int
    bounds: Bounds

    @property
    def value(self) -> float:
        """The mean over the seeds; NaN if a value is missing."""
        return self.bounds.value

    @property
    def verdict(self) -> Verdict:
        """Whether the whole interval keeps the rule, none of it does, or neither; what is missing keeps no rule."""
        if math.isnan(self.value):
            return "FAILED"
        return self.expectation.verdict(self.bounds.low, self.bounds.high)

    def __str__(self) -> str:
        runs = f"{self.runs}: " if self.runs else ""
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        return f"{self.verdict:9}  {self.bounds}  {self.expectation.rule()}: {runs}{self.expectation.what()} ({seeds})"


def check(
    results: Sequence[Result], expectations: Sequence[Expectation] | None = None, *, means: bool = False
) -> Iterator[Check]:
    """Yield a check for each expectation and each setting that it applies to, in the order of the expectations.

    Parameters
    ----------
    results
        Runs that are finished.
    expectations
        Expectations to use instead of those in the runs' configs.
    means
        Whether the mean alone decides, as if it were known exactly.

    Raises
    ------
    ConfigError
        If a run is not finished, no run has an expectation, an expected value was not measured, or all runs of an
        expectation are those that it compares with.
    """
    _check_finished(results)
    named = dict(zip([result.folder for result in results], _names(results), strict=True))
    applicable = list(_applicable(results, expectations))
    for expectation, members in applicable:
        by_seed = _by_seed(expectation, members, results)
        bounds = _bounds(expectation, by_seed)
        yield Check(expectation, named[members[0].folder], len(by_seed), bounds.alone() if means else bounds)
    if not applicable:
        raise ConfigError(
            "no run has an expectation; give the experiment's file with --expect, or add [[expect]] to it and rerun it"
        )


def _check_finished(results: Sequence[Result]) -> None:
    for result in results:
        if not is_finished(result):
            raise ConfigError(
                f"{result.folder.path} is not finished (round {result.evaluated} of {result.config.rounds}); resume it "
                "with 'fedsim run' first"
            )


def _applicable(
    results: Sequence[Result], expectations: Sequence[Expectation] | None
) -> Iterator[tuple[Expectation, list[Result]]]:
    """Yield each expectation with the runs of each setting that it applies to, without those it compares with."""
    settings: dict[str, list[Result]] = {}
    for result in results:
        settings.setdefault(result.setting, []).append(result)

    def expected_of(config: Config) -> dict[str, Expectation]:
        known = config.expect if expectations is None else expectations
        return {each.model_dump_json(): each for each in known if matches(config, each.where)}

    expected = {setting: expected_of(members[0].config) for setting, members in settings.items()}
    for key in dict.fromkeys(key for each in expected.values() for key in each):
        found = [(each[key], settings[setting]) for setting, each in expected.items() if key in each]
        compared = [
            (expectation, kept)
            for expectation, members in found
            if (kept := [each for each in members if not _is_reference(expectation, each.config)])
        ]
        if not compared:
            raise ConfigError(
                f"[[expect]] {_of(found[0][0])} names the same runs that are compared, so that each would be compared "
                "with itself; give runs with other settings too, or name other settings in of"
            )
        yield from compared


def _is_reference(expectation: Expectation, config: Config) -> bool:
    """Return whether a run would be compared with itself, by the same value."""
    wanted = expectation.other_settings
    return bool(wanted) and wanted == expectation.of and matches(config, wanted)


def _of(expectation: Expectation) -> str:
    return f"of = {{ {', '.join(f'{key} = {as_toml(value)}' for key, value in expectation.other_settings.items())} }}"


def _names(results: Sequence[Result]) -> list[str]:
    """Return what distinguishes each run from the others, except the seed; empty if nothing does."""
    strategies = {result.strategy for result in results}
    names = []
    for result, settings in zip(results, distinguishing_settings(results), strict=True):
        parts = [result.strategy] if len(strategies) > 1 else []
        parts += [f"{key}={value}" for key, value in settings.items() if value != "-"]
        names.append(", ".join(parts))
    return names


def matches(config: Config, wanted: Mapping[str, Any]) -> bool:
    """Return whether a config has these values of settings; a list stands for itself, and for any of its values."""
    settings = config.model_dump(mode="json")
    return all(
        any(_setting(settings, key) == each or is_name(config, key, each) for each in _meant(value))
        for key, value in wanted.items()
    )


def _meant(value: Any) -> list[Any]:
    return [value, *value] if isinstance(value, list) else [value]


def _setting(settings: Mapping[str, Any], key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _by_seed(
    expectation: Expectation, members: Sequence[Result], results: Sequence[Result]
) -> list[tuple[float, float]]:
    """Return what is measured and the reference, 0 without one, of each seed; runs of one seed count as one."""
    found: dict[int, list[tuple[float, float]]] = {}
    for result in members:
        reference, value = 0.0, _measured(expectation, result)
        if expectation.reference is not None:
            reference = _measured(expectation.reference, _other(expectation, result, results))
        found.setdefault(result.config.seed, []).append((value, reference))
    return [
        (float(np.mean([own for own, _ in each])), float(np.mean([of for _, of in each]))) for each in found.values()
    ]


def _bounds(expectation: Expectation, by_seed: Sequence[tuple[float, float]]) -> Bounds:
    """Return the mean over the seeds, paired with the reference, and its interval."""
    values, references = zip(*by_seed, strict=True)
    if expectation.compare == "ratio":
        return of_ratio(values, references)
    return of_mean([value - reference for value, reference in by_seed])


def _other(expectation: Expectation, result: Result, results: Sequence[Result]) -> Result:
    """Return the run that a run is compared with."""
    if not expectation.other_settings:
        return result
    config = reference_config(expectation, result.config, [other.config for other in results], tuned_settings([result]))
    if config is None:
        raise ConfigError(
            f"{result.folder.path} is to be compared with a run that has {expectation.other_settings} and the same "
            "other settings; run that too, and give both"
        )
    return next(other for other in results if other.config is config)


def reference_config(
    expectation: Expectation, config: Config, configs: Sequence[Config], tuned: Collection[str] = ()
) -> Config | None:
    """Return the config, if there is one, of the run that a run of this config is compared with.

    Parameters
    ----------
    tuned
        Settings in which it may differ, as each method has its own.

    Raises
    ------
    ConfigError
        If there are several.
    """
    wanted = expectation.other_settings
    free = {key.partition(".")[0] for key in wanted} | set(WITHOUT_EFFECT)
    same = _kept(config, free, tuned)
    found = [each for each in configs if _kept(each, free, tuned) == same and matches(each, wanted)]
    if others := [each for each in found if each != found[0]]:
        names = " and ".join(CATALOGUES["strategies"].label(each.strategy) for each in (found[0], others[0]))
        raise ConfigError(
            f"[[expect]] {_of(expectation)} matches several runs of seed {config.seed}, such as those of {names}; name "
            "more of their settings"
        )
    return next(iter(found), None)


def _kept(config: Config, free: Collection[str], tuned: Collection[str]) -> dict[str, Any]:
    kept = flat(config.model_dump(exclude=set(free)))
    return {key: value for key, value in kept.items() if key not in tuned}


def _measured(expectation: Expectation, result: Result) -> float:
    """Return one number of one run."""
    if expectation.metric:
        rows = _metric_rows(expectation, result)
    elif expectation.measure:
        rows = measured_rows(expectation, result)
    else:
        rows = _barrier_rows(expectation, result)
    if expectation.round != "all" and len(rows):
        wanted = rows["round"].max() if expectation.round == "last" else expectation.round
        rows = rows[rows["round"] == wanted]
    if rows.empty:
        raise ConfigError(f"{result.folder.path} has no {expectation.what()}; measure it, or fix [[expect]]")
    values = rows[expectation.barrier or expectation.column or "value"].astype(float)
    if not expectation.measure and values.isna().any():
        return math.nan  # not that of the others
    return float(values.agg(expectation.reduce))


def _metric_rows(expectation: Expectation, result: Result) -> pd.DataFrame:
    assert expectation.metric is not None
    return result.of(expectation.model, expectation.metric, expectation.split, server=expectation.server)


def _barrier_rows(expectation: Expectation, result: Result) -> pd.DataFrame:
    table = result.barriers
    if expectation.barrier not in table.columns:
        known = ", ".join(name for name in table.columns if name.startswith(("loss", "error"))) or "none"
        raise ConfigError(f"{result.folder.path} has no barrier {expectation.barrier!r}; it has: {known}")
    to_average = expectation.against == "average"
    t = (1.0 if to_average else 0.5) if expectation.t is None else expectation.t
    chosen = ((table["other"] < 0) == to_average) & np.isclose(table["t"], t)
    chosen &= in_group(table["group"], expectation.group, result)
    return of_kind(table[chosen], expectation)
