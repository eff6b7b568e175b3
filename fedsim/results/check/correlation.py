"""Rank correlations over runs or groups of layers, within a seed."""

import math
from collections.abc import Mapping, Sequence

from fedsim.analysis.ranks import FEWEST, rank_correlation
from fedsim.config import Config
from fedsim.config.expectation import GROUPS, Expectation
from fedsim.config.toml import short_hash
from fedsim.errors import ConfigError
from fedsim.results.check.bounds import Bounds, of_mean
from fedsim.results.check.settings import setting_of, settings_except
from fedsim.results.result import Result
from fedsim.results.tuning import tuned_settings

# The value of each point, and what it is compared with.
Points = Mapping[str, tuple[float, float]]


def of_correlations(expectation: Expectation, by_seed: Mapping[int, Points]) -> tuple[Bounds, str]:
    """Return the mean over seeds of the rank correlation with its interval, and why it is undefined if it is.

    Raises
    ------
    ConfigError
        If a seed has too few points, or not those of the others.
    """
    _check_points(expectation, by_seed)
    found = {}
    for seed, points in by_seed.items():
        values, references = zip(*points.values(), strict=True)
        if any(map(math.isnan, [*values, *references])):
            return Bounds(math.nan), ""
        found[seed] = rank_correlation(values, references)
    constant = [str(seed) for seed, value in found.items() if math.isnan(value)]
    if constant:
        return Bounds(math.nan), f"undefined, as all points of seed {', '.join(constant)} have the same value"
    return of_mean(list(found.values())), ""


def _check_points(expectation: Expectation, by_seed: Mapping[int, Points]) -> None:
    over = f"[[expect]] compare = 'rank-correlation' over {expectation.over!r}"
    every = dict.fromkeys(name for points in by_seed.values() for name in points)
    for seed, points in by_seed.items():
        if lacking := [name for name in every if name not in points]:
            raise ConfigError(
                f"{over}: seed {seed} lacks {lacking[0]}, which other seeds have; give that too, or leave the seed out"
            )
        if len(points) < FEWEST:
            raise ConfigError(
                f"{over} needs at least {FEWEST} points, and seed {seed} has {len(points)}: {', '.join(points)}; give "
                "more, or change over or where"
            )


def pools(
    expectation: Expectation, settings: Sequence[Sequence[Result]], results: Sequence[Result]
) -> Sequence[Sequence[Result]]:
    """Return the runs, of several settings, whose points are ranked together: all that are equal except in ``over``.

    Raises
    ------
    ConfigError
        If ``over`` is no table or setting.
    """
    over = str(expectation.over)
    if over == GROUPS:
        return settings
    if over not in Config.model_fields and all(setting_of(each.config, over) is None for each in results):
        raise ConfigError(
            f"[[expect]] over = {over!r} is neither 'groups' nor a table or setting; use one in which the runs differ, "
            "such as 'strategy' or 'partition.alpha'"
        )
    free = {"seed", over, *tuned_settings(results)}
    found: dict[str, list[Result]] = {}
    for members in settings:
        found.setdefault(short_hash(settings_except(members[0].config, free)), []).extend(members)
    return list(found.values())
