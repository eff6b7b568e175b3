"""Where the time of a run goes: training, evaluation, analysis and the rest, by round, and of several runs."""

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from fedsim.results.report.charts.compact import chart_of, distinct, values_of
from fedsim.results.report.charts.parts import WHOLE, Axis, Legend, Scale, Tooltip
from fedsim.results.report.palette import COLOURS
from fedsim.results.result import Result

PARTS = {
    "train": "training",
    "fine-tune": "fine-tuning",
    "evaluate": "evaluation",
    "barriers": "analysis",
    "gate": "the strategy's barriers",
    "aggregate": "aggregation",
    "checkpoint": "checkpoints",
}
MOST_BINS = 120
HEIGHT, BAR = 220, 24  # pixels


def seconds_by_round(result: Result) -> pd.DataFrame:
    """Return wall seconds of each part (columns) by round; a part that a round did not have took 0."""
    if result.timing.empty:
        return pd.DataFrame()
    table = result.timing.set_index("round").astype(float).fillna(0.0).sort_index()
    order = [part for part in PARTS if part in table] + [part for part in table if part not in PARTS]
    return table[order].rename(columns=PARTS)


def seconds_of_runs(members: Sequence[Result]) -> pd.Series:
    """Return the mean over runs of the wall seconds of each part, all rounds together."""
    totals = pd.DataFrame([seconds_by_round(result).sum() for result in members]).fillna(0.0)
    return totals.mean() if len(totals) else pd.Series(dtype=float)


def round_seconds(result: Result) -> alt.Chart | None:
    """Return the bars of the rounds with their parts; means of neighbouring rounds where there are many."""
    table = seconds_by_round(result)
    if table.empty or not table.to_numpy().any():
        return None
    width = -(-len(table) // MOST_BINS)
    bins = np.arange(len(table)) // width
    means = table.groupby(bins).mean()
    first, last = (pd.Series(table.index).groupby(bins).agg(how).to_numpy() for how in ("min", "max"))
    parts = [str(part) for part in means]
    rows = [
        {"a": int(first[place]), "b": int(last[place]), "p": part, "o": order, "v": value}
        for place, values in enumerate(means.to_numpy())
        for order, (part, value) in enumerate(zip(parts, values, strict=True))
        if value > 0
    ]
    return (
        alt.Chart(values_of(pd.DataFrame(rows)))
        .transform_calculate(left="datum.a - 0.4", right="datum.b + 0.4")
        .transform_stack(stack="v", as_=["low", "high"], groupby=["a"], sort=[alt.SortField("o")])
        .mark_bar()
        .encode(
            x=alt.X(
                "left:Q",
                title="round",
                axis=Axis(**WHOLE),
                scale=Scale(nice=False, zero=False),
            ),
            x2=alt.X2("right:Q"),
            y=alt.Y("low:Q", title="seconds" if width == 1 else f"seconds per round, means of {width} rounds"),
            y2=alt.Y2("high:Q"),
            color=_part_colour(parts),
            tooltip=[
                Tooltip("a:Q", title="round" if width == 1 else "first round"),
                *([Tooltip("b:Q", title="last round")] if width > 1 else []),
                Tooltip("p:N", title="part"),
                Tooltip("v:Q", title="seconds", format=".3~g"),
            ],
        )
        .properties(width="container", height=HEIGHT)
    )


def run_seconds(seconds: Mapping[str, pd.Series]) -> alt.Chart | None:
    """Return a bar for each of several runs, with its parts.

    Parameters
    ----------
    seconds
        What `seconds_of_runs` returns, by the names of the runs.
    """
    parts = list(dict.fromkeys(str(part) for each in seconds.values() for part in each.index))
    names = distinct(list(seconds), 48)
    rows = pd.DataFrame(
        [
            {"g": number, "p": str(part), "o": parts.index(str(part)), "v": float(value)}
            for number, each in enumerate(seconds.values())
            for part, value in each.items()
            if value > 0
        ]
    )
    if rows.empty:
        return None
    return (
        chart_of(rows, g=names)
        .mark_bar()
        .encode(
            y=alt.Y(
                "g_name:N",
                title=None,
                sort=alt.EncodingSortField("g", op="min"),
                scale=Scale(domain=names),
                axis=Axis(labelLimit=220),
            ),
            x=alt.X("v:Q", title="seconds, mean over seeds"),
            color=_part_colour(parts),
            order=alt.Order("o:Q"),
            tooltip=[
                Tooltip("g_name:N", title="run"),
                Tooltip("p:N", title="part"),
                Tooltip("v:Q", title="seconds", format=".3~g"),
            ],
        )
        .properties(width="container", height=BAR * max(2, len(names)))
    )


def _part_colour(parts: Sequence[str]) -> alt.Color:
    """Return the colours of parts, which stay the same in all runs."""
    known = [*PARTS.values()]
    colours = [COLOURS[known.index(part) if part in known else len(COLOURS) - 1] for part in parts]
    return alt.Color(
        "p:N",
        title=None,
        scale=Scale(domain=list(parts), range=colours),
        legend=Legend(orient="top"),
    )
