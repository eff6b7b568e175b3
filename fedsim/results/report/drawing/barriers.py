"""Figures of layer-wise barriers: by layer and round, of growing groups and windows, and along the path.

Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from fedsim.analysis.mixing.names import AVERAGE, kind_of
from fedsim.results.measured import CLIENTS, scale_of
from fedsim.results.report.drawing.heat_maps import HeatMaps, Quantity
from fedsim.results.report.drawing.small_multiples import Curve, SmallMultiples

GROWING_TEXTS = {
    "shallow": "first k layers",
    "deep": "last k layers",
    "random": "k layers in random order",
    "adapters": "adapters of the first k layers",
}
REFERENCES = {
    "mean_ends": "the models' mean",
    "own_base": "its own",
    "swap_ends": "the path's ends'",
    "chord": "the models', by t",
}
Name = Callable[[int], str]


def client_name(index: int) -> str:
    """Return the name of a model in a run."""
    return "the average" if index == AVERAGE else f"client {index}"


def quantity(metric: str, rows: pd.DataFrame, what: str = "barrier") -> Quantity:
    """Return what a heat map of ``loss``, or of ``error`` in percentage points or squares, shows of these rows."""
    factor, unit = scale_of(metric, rows)
    return Quantity(f"{metric} {what}\n({unit})", factor)


def rows_of_kind(rows: pd.DataFrame, *kinds: str) -> pd.DataFrame:
    """Return the rows of groups of these kinds; ``""`` is the kind of single layers, ``full`` and named groups."""
    return rows[rows["group"].map(kind_of).isin(kinds)]


def at_the_middle(rows: pd.DataFrame, *, pairs: bool) -> pd.DataFrame:
    """Return the rows that heat maps show: pairs at the t next to 1/2, or the average at the largest t."""
    chosen = rows[(rows["other"] != AVERAGE) == pairs]
    if chosen.empty:
        return chosen
    ts = np.sort(chosen["t"].unique())
    return chosen[chosen["t"] == (ts[np.argmin(np.abs(ts - 0.5))] if pairs else ts[-1])]


def barrier_table(rows: pd.DataFrame, column: str, over: str = "round") -> pd.DataFrame:
    """Return the mean of a column by group, ``full`` first, and by round or another column."""
    table = rows.pivot_table(index="group", columns=over, values=column, aggfunc="mean", sort=False, dropna=False)
    table = table[sorted(table.columns)]
    return table.loc[sorted(table.index, key=lambda group: group != "full")]


def directions(rows: pd.DataFrame, name: Name = client_name) -> dict[str, pd.DataFrame]:
    """Return the rows by direction where there are two models, and together where there are more."""
    bases = sorted(rows["base"].unique())
    if len(bases) != 2:
        whose = "the average" if (rows["other"] == AVERAGE).any() else "another"
        return {f"{whose} into each model": rows}
    others = {base: rows.loc[rows["base"] == base, "other"].iloc[0] for base in bases}
    return {f"{name(others[base])} into {name(base)}": rows[rows["base"] == base] for base in bases}


def maps(rows: pd.DataFrame, metric: str, *, pairs: bool) -> HeatMaps:
    """Return barriers by group and round, against two references; of two clients in both directions.

    On each client's own data there is one reference, the client's own model.

    Parameters
    ----------
    rows
        Table of `fedsim.analysis.barriers` with a column ``round``.
    metric
        ``loss`` or ``error``.
    pairs
        Whether to draw pairs of clients halfway, or clients with the average's layers.
    """
    chosen = at_the_middle(rows_of_kind(rows, ""), pairs=pairs)
    wanted = () if is_of_clients(rows) else ("mean_ends", "swap_ends" if pairs else "own_base")
    references = [each for each in wanted if f"{metric}_{each}" in rows] or [first_reference(rows, metric)]
    tables = {
        f"{direction},\nminus {REFERENCES[reference]} {metric}": barrier_table(part, f"{metric}_{reference}")
        for reference in references
        for direction, part in directions(chosen).items()
    }
    return HeatMaps(tables, quantity(metric, rows), across=2)


def growing_maps(rows: pd.DataFrame, metric: str) -> HeatMaps:
    """Return the barriers of the first, last and random k layers by k and round."""
    return _maps_by_kind(rows, metric, GROWING_TEXTS, "k", int)


def window_maps(rows: pd.DataFrame, metric: str) -> HeatMaps:
    """Return the barriers of each k consecutive layers by the first of them and by round."""
    kinds = [kind for kind in rows["group"].map(kind_of).unique() if kind.startswith("windows:")]
    texts = {kind: f"{kind.removeprefix('windows:')} layers" for kind in kinds}
    return _maps_by_kind(rows, metric, texts, "first layer", str)


def _maps_by_kind(
    rows: pd.DataFrame, metric: str, kinds: Mapping[str, str], what: str, label: Callable[[str], int | str]
) -> HeatMaps:
    chosen = rows_of_kind(rows, *kinds)
    against_average = (chosen["other"] == AVERAGE).any()
    chosen = at_the_middle(chosen, pairs=not against_average)
    ways = directions(chosen)
    tables = {}
    for kind, text in kinds.items():
        for direction, part in ways.items():
            if len(part := rows_of_kind(part, kind)):
                table = barrier_table(part, f"{metric}_{first_reference(rows, metric)}")
                tables[f"{text} of {direction}"] = table.set_axis(
                    [label(g.removeprefix(f"{kind}:")) for g in table.index]
                )
    return HeatMaps(tables, quantity(metric, rows), across=2, rows=what)


def first_reference(rows: pd.DataFrame, metric: str) -> str:
    """Return the reference to draw where there is room for one: of a client on its own data, its own model."""
    measured = [each for each in REFERENCES if f"{metric}_{each}" in rows]
    return "own_base" if is_of_clients(rows) and "own_base" in measured else measured[0]


def is_of_clients(rows: pd.DataFrame) -> bool:
    """Return whether each client's model was measured on that client's data, on which others' models say little."""
    return "data" in rows and bool((rows["data"] == CLIENTS).all())


def has_paths(rows: pd.DataFrame) -> bool:
    """Return whether some group was measured at more than two points of a path, in the last of the rounds."""
    return bool((last_round(rows).groupby(["group", "base", "other"])["t"].nunique() > 2).any())


def paths(rows: pd.DataFrame, metric: str, name: Name = client_name) -> SmallMultiples:
    """Return the metric of the mixed models along their paths, by group, in the last round, with bands.

    Bands are those that were measured, or 1.96 standard errors; that of a mean over models is the mean of theirs,
    which is at least as wide as it must be.
    """
    rows = rows_of_kind(last_round(rows), "")
    several = rows.groupby(["group", "base", "other"])["t"].transform("nunique") > 2
    rows = rows[several]
    rows = rows[rows["other"] == AVERAGE] if (rows["other"] == AVERAGE).all() else rows[rows["other"] != AVERAGE]
    panels: dict[str, list[Curve]] = {}
    for group in sorted(rows["group"].unique(), key=lambda group: group != "full"):
        own = rows[rows["group"] == group]
        panels[group] = [
            Curve(direction, _with_band(part, metric), number)
            for number, (direction, part) in enumerate(directions(own, name).items())
        ]
    factor, words = scale_of(metric, rows)
    unit = f"{metric} ({'%' if factor == 100 else words})"
    return SmallMultiples(panels, "t: from the model itself (0) to the other's layers (1)", unit)


def last_round(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last round, or all rows where there are no rounds."""
    return rows[rows["round"] == rows["round"].max()] if "round" in rows else rows


def _with_band(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the mean of a metric by t, with the band of its barrier moved there."""
    factor, barrier = scale_of(metric, rows)[0], f"{metric}_{first_reference(rows, metric)}"
    half = 1.96 * rows[f"{barrier}_se"]
    low, high = (
        rows[f"{barrier}_low"] - rows[barrier] if f"{barrier}_low" in rows else -half,
        rows[f"{barrier}_high"] - rows[barrier] if f"{barrier}_high" in rows else half,
    )
    bounds = pd.DataFrame({"value": rows[metric], "low": rows[metric] + low, "high": rows[metric] + high})
    return factor * bounds.groupby(rows["t"]).mean()


def compared_barriers(tables: Mapping[str, pd.DataFrame], metric: str) -> HeatMaps:
    """Return the barriers of several runs, of clients with the average's layers, on one scale.

    Parameters
    ----------
    tables
        By name, the rows of `fedsim.analysis.barriers` with a column ``round``, all of one kind of data.
    """
    drawn = {}
    for name, rows in tables.items():
        column = f"{metric}_{first_reference(rows, metric)}"
        drawn[name] = barrier_table(at_the_middle(rows_of_kind(rows, ""), pairs=False), column)
    every = pd.concat([rows.iloc[:1] for rows in tables.values()])
    return HeatMaps(drawn, quantity(metric, every), across=2)
