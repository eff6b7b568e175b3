"""The numbers of a run that an expectation is about."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fedsim.config.expectation import Expectation
from fedsim.errors import ConfigError
from fedsim.results.check.selection import group_names, in_group, measured_rows, of_kind
from fedsim.results.check.settings import matches, setting_of
from fedsim.results.result import Result


def value_of(expectation: Expectation, result: Result) -> float:
    """Return one number of one run.

    Raises
    ------
    ConfigError
        If it was not measured, or is a setting that is no number and has no position.
    """
    if expectation.setting:
        return _number_of_setting(expectation, result)
    return _reduced(expectation, _values(expectation, _rows(expectation, result)))


def values_of_groups(expectation: Expectation, result: Result) -> dict[str, float]:
    """Return one number of each group of layers of one run.

    Raises
    ------
    ConfigError
        If none was measured, or the table is not one of groups.
    """
    rows = _rows(expectation, result)
    names = group_names(rows)
    if names is None:
        raise ConfigError(
            f"{result.folder.path}: the table {expectation.measure!r} is not of groups of layers; "
            "use another one with over = 'groups'"
        )
    by_group = _values(expectation, rows).groupby(names, sort=False)
    return {str(name): _reduced(expectation, values) for name, values in by_group}


def with_own_group(expectation: Expectation, result: Result, results: Sequence[Result]) -> Expectation:
    """Return an expectation with the name or pattern that a run's setting has, if its group is a setting.

    Raises
    ------
    ConfigError
        If only other runs have the setting.
    """
    group = expectation.group
    named = setting_of(result.config, group) if "." in group else None
    if isinstance(named, str):
        return expectation.model_copy(update={"group": named})
    if "." in group and any(isinstance(setting_of(each.config, group), str) for each in results):
        raise ConfigError(
            f"{result.folder.path} has no {group}, which names the group of [[expect]]; leave this run out with where"
        )
    return expectation


def _number_of_setting(expectation: Expectation, result: Result) -> float:
    key = str(expectation.setting)
    value = setting_of(result.config, key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    listed = expectation.where.get(key)
    for position, each in enumerate(listed if isinstance(listed, list) else []):
        if matches(result.config, {key: each}):
            return float(position)
    raise ConfigError(
        f"{result.folder.path} has {key} = {value!r}, which is no number; list the values in where, in their order"
    )


def _rows(expectation: Expectation, result: Result) -> pd.DataFrame:
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
    return rows


def _values(expectation: Expectation, rows: pd.DataFrame) -> pd.Series:
    return rows[expectation.barrier or expectation.column or "value"].astype(float)


def _reduced(expectation: Expectation, values: pd.Series) -> float:
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
