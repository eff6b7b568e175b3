"""Figures and table of the barriers between checkpoints, without a run."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from fedsim.report.barriers import AVERAGE, at_the_middle, barrier_table, has_paths, kind_of, paths, quantity
from fedsim.report.heat_maps import heat_maps
from fedsim.report.tables import Table

MOST_ENDS = 8  # whose barriers by t fit on a page


def checkpoint_figures(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, Figure]:
    """Return the figures of barriers between checkpoints, by the names of their files.

    Parameters
    ----------
    rows
        Of `fedsim.analysis.barriers`.
    names
        Of the checkpoints, by their indices.
    """
    figures = {}
    for metric in ("loss", "error"):
        figures[f"barriers-{metric}"] = heat_map(rows, names, metric)
        if has_paths(rows[rows["group"].map(kind_of) == ""]):
            figures[f"paths-{metric}"] = paths(rows, metric, lambda index: _name(index, names))
    return figures


def heat_map(rows: pd.DataFrame, names: Sequence[str], metric: str) -> Figure:
    """Draw barriers, minus the models' mean, by group and model, or by group and t for each direction."""
    labelled = rows.assign(end=_ends(rows, names))
    ends, column = list(dict.fromkeys(labelled["end"])), f"{metric}_mean_ends"
    if rows["t"].nunique() > 1 and len(ends) <= MOST_ENDS:
        tables = {end: barrier_table(labelled[labelled["end"] == end], column, "t") for end in ends}
        return heat_maps(tables, quantity(metric), across=2, columns="t")
    middle = at_the_middle(labelled, pairs=bool((rows["other"] != AVERAGE).any()))
    title = f"t = {middle['t'].iloc[0]:g}, minus the models' mean {metric}"
    return heat_maps({title: barrier_table(middle, column, "end")[ends]}, quantity(metric), columns="")


def barriers_table(rows: pd.DataFrame, names: Sequence[str]) -> Table:
    """Write the barriers, minus the models' mean, as text: in nats and in percentage points, ± 1.96 standard errors."""
    headings = ("group", "base", "other", "t", "loss barrier", "error barrier", "loss", "error", "examples")
    cells = tuple(
        (
            str(row["group"]),
            _name(int(row["base"]), names),
            _name(int(row["other"]), names),
            f"{row['t']:g}",
            f"{row['loss_mean_ends']:+.4f} ± {1.96 * row['loss_mean_ends_se']:.4f}",
            f"{100 * row['error_mean_ends']:+.2f} ± {196 * row['error_mean_ends_se']:.2f}",
            f"{row['loss']:.4f}",
            f"{100 * row['error']:.2f}",
            f"{int(row['n']):,}",
        )
        for row in rows.to_dict(orient="records")
    )
    return Table(headings, (False, False, False, *[True] * 6), cells)


def _ends(rows: pd.DataFrame, names: Sequence[str]) -> list[str]:
    ends = zip(rows["base"], rows["other"], strict=True)
    return [names[a] if b == AVERAGE else f"{names[b]} into {names[a]}" for a, b in ends]


def _name(index: int, names: Sequence[str]) -> str:
    return "the average" if index == AVERAGE else names[index]
