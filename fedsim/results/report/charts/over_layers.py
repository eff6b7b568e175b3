"""Curves over a model's layers in forward order, one panel below the other, with their values on hover."""

import altair as alt
import pandas as pd
from altair.vegalite.v6.api import ChartType

from fedsim.results.report.charts.compact import axis_scale, chart_of, distinct, line_legend
from fedsim.results.report.charts.parts import Axis, Scale, Tooltip
from fedsim.results.report.drawing.layer_curves import SMALLEST, LayerCurves, LayerPanel
from fedsim.results.report.palette import COLOURS

HEIGHT, WIDTH = 110, 640  # pixels


def over_layers_chart(curves: LayerCurves) -> ChartType | None:
    """Return the panels that have a value; None if none has."""
    panels = [each for panel in curves.known if (each := _panel(panel, curves.layers)) is not None]
    return alt.vconcat(*panels).resolve_scale(color="independent") if panels else None


def _panel(panel: LayerPanel, layers: list[str]) -> ChartType | None:
    labels = [" ".join(curve.label.split()) for curve in panel.curves]
    rows = pd.concat(
        [
            curve.points.astype(float)
            .set_axis(["v", "a", "b"], axis=1)
            .assign(l=[layers.index(layer) for layer in curve.points.index], c=number)
            for number, curve in enumerate(panel.curves)
        ]
    )
    rows = rows[rows["v"] > SMALLEST] if panel.log else rows.dropna(subset="v")
    if rows.empty:
        return None
    if panel.log:
        rows = rows.assign(a=rows["a"].clip(lower=SMALLEST))
    shown = distinct(labels, 60)
    base = chart_of(rows, l=distinct([str(layer) for layer in layers]), c=shown)
    x = alt.X(
        "l_name:N",
        title=None,
        sort=alt.EncodingSortField("l", op="min"),
        axis=Axis(labelAngle=-50, labelLimit=90, labelOverlap=True),
    )
    scale = axis_scale(log=panel.log)
    y = alt.Y("v:Q", title=None, scale=scale, axis=Axis(format=".3~g", tickCount=4))
    colours = [COLOURS[curve.number % len(COLOURS)] for curve in panel.curves]
    colour = alt.Color("c_name:N", scale=Scale(domain=shown, range=colours), legend=line_legend())
    tooltip = [
        Tooltip("l_name:N", title="layer"),
        Tooltip("c_name:N", title="curve"),
        Tooltip("v:Q", title="mean", format=".4~g"),
        Tooltip("a:Q", title="smallest", format=".4~g"),
        Tooltip("b:Q", title="largest", format=".4~g"),
    ]
    band = base.mark_area(opacity=0.2).encode(
        x=x, y=alt.Y("a:Q", title=None, scale=scale), y2=alt.Y2("b:Q"), color=colour
    )
    parts = [band, base.mark_line(point=True).encode(x=x, y=y, color=colour, tooltip=tooltip)]
    if panel.mark is not None:
        parts.append(alt.Chart({"values": [{"m": panel.mark}]}).mark_rule(strokeDash=[4, 4]).encode(y=alt.Y("m:Q")))
    return alt.layer(*parts, title=panel.title, width=WIDTH, height=HEIGHT)
