"""Curves over rounds, bytes, passes or seconds: a line per method, a panel per swept setting, bands over the seeds."""

from typing import Any

import altair as alt
from altair.vegalite.v6.api import ChartType

from fedsim.results.report.charts.curve_data import X_AXES, Curves, Measure
from fedsim.results.report.charts.parts import WHOLE, Axis, Legend, Scale, Tooltip
from fedsim.results.report.charts.theme import BYTES_FORMAT, LOSS_FORMAT, SHARE_FORMAT
from fedsim.results.report.comparing import costs

LEGEND = Legend(title=None, symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=3, symbolSize=180)
HEIGHT = 280
FEW_POINTS = 40  # rounds up to which each has a marker
LOGARITHMIC_FROM = 30  # ratio of the largest to the smallest total from which bytes have a logarithmic axis
X_LABELS = {"round": "rounds", costs.BYTES: "bytes", costs.PASSES: "passes", "seconds": "seconds"}
X_TITLES = {
    "round": "round",
    costs.BYTES: "bytes up and down so far, all clients",
    costs.PASSES: "training passes so far, all clients (examples)",
    "seconds": "wall time of the rounds so far (seconds)",
}


def curves(found: Curves) -> ChartType | None:
    """Return the chart; None if no line has a value.

    Its ``usermeta`` holds the choices that the page offers: what is on each axis.
    """
    rows = found.rows
    if rows.empty or rows[[measure.key for measure in found.measures]].isna().all(axis=None):
        return None
    x_axis, measure = alt.param("x_axis", value="round"), alt.param("measure", value=found.measures[0].key)
    picked = alt.selection_point("picked", fields=["name"], bind="legend")
    shares = [each.key for each in found.measures if each.is_share]
    base = alt.Chart(rows).transform_calculate(
        x="datum[x_axis]",
        y="datum[measure]",
        low="datum['low_' + measure]",
        high="datum['high_' + measure]",
        value=f"indexof({shares!r}, measure) >= 0 ? format(datum[measure], '.1%') : format(datum[measure], '.4')",
    )
    chart = _layers(base, found, picked).add_params(picked)
    if rows["panel"].nunique() > 1:
        panels = list(dict.fromkeys(rows["panel"]))
        faceted = chart.properties(height=HEIGHT - 60).facet(
            alt.Facet("panel:N", title=None, sort=panels), columns=min(4, len(panels))
        )
        faceted = faceted.resolve_scale(x="shared", y="shared")
        return faceted.add_params(x_axis, measure).properties(usermeta=_choices(found))
    return chart.add_params(x_axis, measure).properties(height=HEIGHT, usermeta=_choices(found))


def _layers(base: alt.Chart, found: Curves, picked: alt.Parameter) -> ChartType:
    shown_names = list(found.looks)
    names = Scale(domain=shown_names, range=[look.colour for look in found.looks.values()])
    dashes = [list(look.dash) or [1, 0] for look in found.looks.values()]
    y = alt.Y("y:Q", scale=Scale(zero=False), **_y_axis(found.measures[0]))
    x = alt.X("x:Q", scale=Scale(zero=False, nice=False), axis=Axis(title="round", **WHOLE))
    shown = {
        "color": alt.Color("name:N", scale=names, legend=LEGEND),
        "detail": alt.Detail("line:N"),
    }
    dash = alt.StrokeDash("name:N", scale=Scale(domain=shown_names, range=dashes), legend=LEGEND)
    tooltip = [
        Tooltip("name:N", title="line"),
        *([Tooltip("panel:N", title="setting")] if found.rows["panel"].nunique() > 1 else []),
        Tooltip("value:N", title="value"),
        Tooltip("round:Q", title="round"),
        Tooltip("bytes:Q", title="bytes", format=".4~s"),
        Tooltip("passes:Q", title="passes", format=".4~s"),
        Tooltip("seconds:Q", title="seconds", format=".4~g"),
    ]
    line = base.transform_filter("!isValid(datum.free)")
    few = found.rows["round"].nunique() <= FEW_POINTS
    hovered = alt.selection_point(
        "hovered", on="pointerover", clear="pointerout", fields=["line", "round"], empty=False
    )
    layers: list[Any] = []
    if any(str(column).startswith("low_") for column in found.rows):
        band = {"opacity": alt.OpacityValue(**alt.condition(picked, alt.value(0.14), alt.value(0.02)))}
        layers.append(
            line.mark_area(interpolate="linear").encode(
                x=x, y=alt.Y("low:Q", **_y_axis(found.measures[0])), y2=alt.Y2("high:Q"), **shown, **band
            )
        )
    faded = {"opacity": alt.OpacityValue(**alt.condition(picked, alt.value(1), alt.value(0.12)))}
    layers.append(line.mark_line().encode(x=x, y=y, strokeDash=dash, **shown, **faded))
    free = base.transform_filter("datum.free == x_axis")
    layers.append(
        free.mark_rule(strokeWidth=2, aria=False).encode(
            y=y, strokeDash=dash, **shown, **faded, tooltip=_free_tooltip()
        )
    )
    shown_points = alt.when(hovered).then(alt.value(1)).when(picked).then(alt.value(0.9 if few else 0))
    points = line.mark_point(filled=True, size=36).encode(
        x=x,
        y=y,
        **shown,
        opacity=shown_points.otherwise(alt.value(0)),
        tooltip=tooltip,
    )
    return alt.layer(*layers, points.add_params(hovered))


def _free_tooltip() -> list[Tooltip]:
    return [
        Tooltip("name:N", title="line"),
        Tooltip("value:N", title="last value"),
        Tooltip("free:N", title="spends no"),
    ]


def _y_axis(measure: Measure) -> dict[str, Any]:
    return {"axis": Axis(**_y_encoding(measure)["axis"])}


def _y_encoding(measure: Measure) -> dict[str, Any]:
    return {"axis": {"title": measure.title, "format": SHARE_FORMAT if measure.is_share else LOSS_FORMAT}}


def _choices(found: Curves) -> dict[str, Any]:
    """Return what each axis can show, and how it changes the encoding."""
    rows = found.rows
    shown = [what for what in X_AXES if rows[what].notna().any()]
    x = [{"label": X_LABELS[what], "value": what, "encoding": {"x": _x_encoding(found, what)}} for what in shown]
    y = [{"label": each.title, "value": each.key, "encoding": {"y": _y_encoding(each)}} for each in found.measures]
    choices = [
        {"param": "x_axis", "label": "horizontal axis:", "options": x},
        {"param": "measure", "label": "vertical axis:", "options": y},
    ]
    return {"choices": [choice for choice in choices if len(choice["options"]) > 1]}


def _x_encoding(found: Curves, what: str) -> dict[str, Any]:
    if what == "round":
        return {"axis": {"title": X_TITLES[what]} | WHOLE}
    totals = found.rows.groupby("line")[what].max().dropna()
    least = found.rows[what].min()
    is_log = what == costs.BYTES and least > 0 and totals.max() > LOGARITHMIC_FROM * totals.min()
    scale = {"type": "log", "nice": False} if is_log else {"type": "linear", "zero": True, "nice": False}
    plain = {"format": BYTES_FORMAT, "tickMinStep": 0, "tickCount": 6, "labelExpr": "datum.label"}
    return {"axis": {"title": X_TITLES[what]} | plain, "scale": scale}
