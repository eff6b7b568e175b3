"""Curves with bands of many groups of layers, one small panel each, with their values on hover."""

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd
from altair.vegalite.v6.api import ChartType

from fedsim.results.report.charts.compact import MOST_ROWS, axis_scale, chart_of, distinct, line_legend, thinned
from fedsim.results.report.charts.parts import Axis, Scale, Tooltip
from fedsim.results.report.drawing.small_multiples import Curve, SmallMultiples, most_moving
from fedsim.results.report.palette import COLOURS

HEIGHT, WIDTH, ACROSS = 110, 240, 4  # pixels, and panels in a row
MOST_TICKS = 6
FULL = "full"


def panels_chart(multiples: SmallMultiples) -> ChartType | None:
    """Return the panels; ``full`` has its own scale and comes first; None if there is no value."""
    panels = most_moving(multiples.panels)
    rows, labels = curve_rows(panels)
    if rows.empty:
        return None
    groups = list(panels)
    shared = rows[rows["p"] != groups.index(FULL)] if FULL in groups else rows
    parts: list[ChartType] = []
    if FULL in groups:
        own = rows[rows["p"] == groups.index(FULL)]
        title = "all layers (full)" if len(groups) > 1 else ""
        if len(own):
            parts.append(_curves(own, labels, multiples).properties(title=title, height=1.6 * HEIGHT, width=WIDTH))
    if len(shared):
        names = distinct(groups)
        chart = _curves(shared, labels, multiples, p=names).properties(height=HEIGHT, width=WIDTH)
        header = alt.Header(title=None, labelOrient="top")
        parts.append(
            chart.facet(
                facet=alt.Facet("p_name:N", sort=alt.EncodingSortField("p", op="min"), header=header), columns=ACROSS
            )
        )
    return parts[0] if len(parts) == 1 else alt.vconcat(*parts)


def curve_rows(panels: Mapping[str, Sequence[Curve]]) -> tuple[pd.DataFrame, list[str]]:
    """Return the points of all curves, and the labels of these.

    Columns: ``p`` number of the panel, ``c`` of the label, ``n`` of the colour, ``x, v, a, b`` place, value, band.
    """
    labels = list(dict.fromkeys(curve.label for curves in panels.values() for curve in curves))
    most = max(8, MOST_ROWS // max(1, sum(map(len, panels.values()))))
    tables = []
    for number, curves in enumerate(panels.values()):
        for curve in curves:
            points = curve.points.astype(float)
            places = thinned(range(len(points)), most)
            part = points.iloc[places].rename_axis("x").reset_index()
            part.columns = ["x", "v", "a", "b"]
            tables.append(part.assign(p=number, c=labels.index(curve.label), n=curve.number))
    rows = pd.concat(tables) if tables else pd.DataFrame(columns=["x", "v", "a", "b", "p", "c", "n"])
    return rows[np.isfinite(rows["v"].astype(float))], labels


def _curves(rows: pd.DataFrame, labels: Sequence[str], multiples: SmallMultiples, **names: Sequence[str]) -> ChartType:
    shown = distinct(labels, 60)
    if multiples.log_y:
        rows = rows[rows["v"] > 0].assign(a=rows["a"].clip(lower=rows["v"] / 1e6))
    base = chart_of(rows.drop(columns="n"), c=shown, **names)
    numbers = rows.drop_duplicates("c").set_index("c")["n"]
    used = sorted(set(rows["c"]))
    x = alt.X(
        "x:Q",
        title=multiples.x.partition(":")[0] if names else multiples.x,  # small panels have no room for more
        scale=axis_scale(log=multiples.log, nice=False),
        # Vega would label ticks between few rounds too, rounded.
        axis=Axis(values=thinned(map(int, rows["x"]), MOST_TICKS), format="d")
        if multiples.of_rounds
        else Axis(format="~g", tickCount=5),
    )
    y = alt.Y(
        "v:Q",
        title=multiples.y,
        scale=axis_scale(log=multiples.log_y),
        axis=Axis(format=".3~g", tickCount=4),
    )
    colour = alt.Color(
        "c_name:N",
        scale=Scale(
            domain=[shown[each] for each in used], range=[COLOURS[int(numbers[each]) % len(COLOURS)] for each in used]
        ),
        legend=line_legend(),
    )
    tooltip = [
        *(Tooltip(f"{field}_name:N", title="layers") for field in names),
        Tooltip("c_name:N", title="curve"),
        Tooltip("x:Q", title=multiples.x.partition(":")[0], format=".4~g"),
        Tooltip("v:Q", title=multiples.y, format=".4~g"),
        Tooltip("a:Q", title="band from", format=".4~g"),
        Tooltip("b:Q", title="to", format=".4~g"),
    ]
    band = (
        base.transform_filter("isValid(datum.a) && isValid(datum.b)")
        .mark_area(opacity=0.2)
        .encode(x=x, y=alt.Y("a:Q", title=multiples.y), y2=alt.Y2("b:Q"), color=colour)
    )
    few = len(rows) <= 40 * max(1, rows.groupby(["p", "c"]).ngroups)
    lines = base.mark_line(point=few).encode(x=x, y=y, color=colour, tooltip=tooltip)
    return alt.layer(band, lines)
