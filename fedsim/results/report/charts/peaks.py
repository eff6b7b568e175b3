"""The largest barrier of each path between checkpoints, with its band."""

from collections.abc import Sequence

import altair as alt
import pandas as pd
from altair.vegalite.v6.api import ChartType

from fedsim.results.measured import scale_of
from fedsim.results.report.charts.compact import chart_of, distinct
from fedsim.results.report.charts.parts import Scale, Tooltip

ROW = 26  # pixels of a layer
MOST_DIRECTIONS = 8  # of which each has a colour


def peaks_chart(peaks: pd.DataFrame, reference: str, directions: Sequence[str], metric: str = "loss") -> ChartType:
    """Return a point with its band for each group of layers and direction, the first layer at the top.

    Parameters
    ----------
    peaks
        Table of `fedsim.analysis.peaks`, without the unit of the error.
    directions
        What is mixed into what, by row.
    """
    factor, unit = scale_of(metric, peaks)
    name = f"{metric}_{reference}_max"
    groups, ways = list(dict.fromkeys(peaks["group"])), list(dict.fromkeys(directions))
    rows = pd.DataFrame(
        {
            "g": [groups.index(each) for each in peaks["group"]],
            "w": [ways.index(each) for each in directions],
            "m": factor * peaks[name],
            "a": factor * peaks[f"{name}_low"],
            "b": factor * peaks[f"{name}_high"],
            "t": peaks[f"{name}_t"],
        }
    )
    shown = distinct(ways, 60)
    is_coloured = 1 < len(ways) <= MOST_DIRECTIONS
    title = f"largest {metric} barrier over t ({unit})"
    base = chart_of(rows, g=distinct(groups, 40), w=shown).encode(
        y=alt.Y("g_name:N", title=None, sort=alt.EncodingSortField("g", op="min")),
        tooltip=[
            Tooltip("g_name:N", title="layers"),
            Tooltip("w_name:N", title="mixed"),
            Tooltip("m:Q", title=title, format=".4~g"),
            Tooltip("a:Q", title="band from", format=".4~g"),
            Tooltip("b:Q", title="band to", format=".4~g"),
            Tooltip("t:Q", title="at t", format=".3~g"),
        ],
        color=alt.Color("w_name:N", title=None, scale=Scale(domain=shown)) if is_coloured else alt.Undefined,
        yOffset=alt.YOffset("w:O") if is_coloured else alt.Undefined,
    )
    height = max(80, ROW * len(groups) * max(1, min(len(ways), MOST_DIRECTIONS)) // 2 + ROW * len(groups) // 2)
    zero = alt.Chart(pd.DataFrame({"x": [0]})).mark_rule().encode(x=alt.X("x:Q"))
    bands = base.mark_rule(strokeWidth=2).encode(x=alt.X("a:Q", title=title), x2=alt.X2("b:Q"))
    points = base.mark_point(filled=True, size=50).encode(x=alt.X("m:Q"))
    return alt.layer(zero, bands, points).properties(width="container", height=height)
