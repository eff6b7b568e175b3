"""``fedsim check``: whether runs meet the expectations of their experiment."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.config import Config
from fedsim.config.expectation import GROUPS, Expectation, Verdict
from fedsim.errors import ConfigError
from fedsim.results.check.bounds import Bounds, of_mean, of_ratio
from fedsim.results.check.correlation import Points, of_correlations, pools
from fedsim.results.check.settings import matches, reference_config, wanted_text
from fedsim.results.check.values import value_of, values_of_groups, with_own_group
from fedsim.results.differences import distinguishing_settings
from fedsim.results.report.comparing.units import how_many
from fedsim.results.result import Result
from fedsim.results.tuning import tuned_settings
from fedsim.results.unfinished import is_finished


@dataclass(frozen=True)
class Check:
    """An expectation of runs that differ only in their seed, or of those of a rank correlation, and their value.

    Parameters
    ----------
    runs
        What distinguishes these runs from the others; empty if there are no others.
    points
        Number of points in each seed; 1 except in a rank correlation.
    bounds
        The mean over the seeds, compared as the expectation says, with its interval.
    undefined
        Why there is no value although all was measured; empty if there is one.
    """

    expectation: Expectation
    runs: str
    seeds: int
    points: int
    bounds: Bounds
    undefined: str = ""

    @property
    def value(self) -> float:
        """The mean over the seeds; NaN if a value is missing."""
        return self.bounds.value

    @property
    def verdict(self) -> Verdict:
        """Whether the whole interval keeps the rule, none of it does, or neither; what is missing keeps no rule."""
        if self.undefined:
            return "undecided"
        if math.isnan(self.value):
            return "FAILED"
        return self.expectation.verdict(self.bounds.low, self.bounds.high)

    def __str__(self) -> str:
        runs = f"{self.runs}: " if self.runs else ""
        count = how_many(self.seeds, "seed")
        count += f" of {self.points} points" if self.expectation.is_correlation else ""
        count += f"; {self.undefined}" if self.undefined else ""
        return f"{self.verdict:9}  {self.bounds}  {self.expectation.rule()}: {runs}{self.expectation.what()} ({count})"


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
        If a run is not finished, no run has an expectation, an expected value was not measured, all runs of an
        expectation are those that it compares with, or a rank correlation has fewer than three points in a seed.
    """
    _check_finished(results)
    named = dict(zip([result.folder for result in results], _names(results), strict=True))
    applicable = list(_applicable(results, expectations))
    for expectation, members in applicable:
        by_seed = _by_seed(expectation, members, results)
        bounds, undefined = _bounds(expectation, by_seed)
        yield Check(
            expectation,
            ", ".join(part for part in named[members[0].folder] if all(part in named[each.folder] for each in members)),
            len(by_seed),
            len(next(iter(by_seed.values()))),
            bounds.alone() if means else bounds,
            undefined,
        )
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
) -> Iterator[tuple[Expectation, Sequence[Result]]]:
    """Yield each expectation with the runs of each setting that it applies to, without those it compares with.

    For a rank correlation over runs, those of several settings are together.
    """
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
                f"[[expect]] {wanted_text(found[0][0])} names the same runs that are compared, so that each would be "
                "compared with itself; give runs with other settings too, or name other settings in of"
            )
        expectation, runs = compared[0][0], [kept for _, kept in compared]
        ranked = pools(expectation, runs, results) if expectation.is_correlation else runs
        yield from ((expectation, members) for members in ranked)


def _is_reference(expectation: Expectation, config: Config) -> bool:
    """Return whether a run would be compared with itself, by the same value."""
    wanted = expectation.other_settings
    return bool(wanted) and wanted == expectation.of and matches(config, wanted)


def _names(results: Sequence[Result]) -> list[list[str]]:
    """Return what distinguishes each run from the others, except the seed; empty if nothing does."""
    strategies = {result.strategy for result in results}
    names = []
    for result, settings in zip(results, distinguishing_settings(results), strict=True):
        parts = [result.strategy] if len(strategies) > 1 else []
        names.append(parts + [f"{key}={value}" for key, value in settings.items() if value != "-"])
    return names


def _by_seed(expectation: Expectation, members: Sequence[Result], results: Sequence[Result]) -> dict[int, Points]:
    """Return what is measured at each point and its reference, 0 without one, of each seed.

    Runs that are there several times count as one. There is one point, except in a rank correlation.
    """
    found: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for result in members:
        for point, pair in _points(expectation, result, results).items():
            found.setdefault(result.config.seed, {}).setdefault(point, []).append(pair)
    return {
        seed: {
            point: (float(np.mean([own for own, _ in each])), float(np.mean([of for _, of in each])))
            for point, each in points.items()
        }
        for seed, points in found.items()
    }


def _points(expectation: Expectation, result: Result, results: Sequence[Result]) -> Points:
    """Return the value of each point of a run, and what it is compared with."""
    own = with_own_group(expectation, result, results)
    if expectation.reference is None:
        return {"": (value_of(own, result), 0.0)}
    reference = with_own_group(expectation.reference, result, results)
    other = _other(expectation, result, results)
    if expectation.over != GROUPS:
        point = f"{result.setting} ({result.strategy})" if expectation.is_correlation else ""
        return {point: (value_of(own, result), value_of(reference, other))}
    values, references = values_of_groups(own, result), values_of_groups(reference, other)
    if one_sided := [name for name in {**values, **references} if not (name in values and name in references)]:
        raise ConfigError(
            f"[[expect]] over 'groups': {', '.join(one_sided)} {'has' if len(one_sided) == 1 else 'have'} only one of "
            f"both values in {result.folder.path}; measure the other, or select with group those that have both"
        )
    return {name: (values[name], references[name]) for name in values}


def _bounds(expectation: Expectation, by_seed: Mapping[int, Points]) -> tuple[Bounds, str]:
    """Return the mean over the seeds, paired with the reference, and its interval, and why it is undefined."""
    if expectation.is_correlation:
        return of_correlations(expectation, by_seed)
    pairs = [pair for points in by_seed.values() for pair in points.values()]
    if expectation.compare == "ratio":
        return of_ratio(*zip(*pairs, strict=True)), ""
    return of_mean([value - reference for value, reference in pairs]), ""


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
