"""The layer strip: a model from input to output, and what averaging each layer costs the clients, by round."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.vegalite.v6.api import ChartType

from fedsim.results.report.charts.compact import MOST_ROWS, distinct, thinned, values_of
from fedsim.results.report.charts.layer_costs import FULL, LayerCosts, shares_of
from fedsim.results.report.charts.parts import Legend, Scale, Tooltip
from fedsim.results.report.comparing.units import format_bytes
from fedsim.results.report.drawing.heat_maps import colour_limit
from fedsim.results.report.palette import DIVERGING

HEIGHT = 122  # pixels of one strip with its name
MOST_STRIPS = 30
# Where a strip has its name, the cost of all layers, each layer, and the intervals, from its top (0) to its bottom (1).
TITLE, TOGETHER, TOP, BOTTOM, HIGHEST, LOWEST = 0.1, 0.22, 0.3, 0.58, 0.64, 0.95
NUMBER = 36  # pixels that a number takes
WHITE_FROM = 0.6  # share of the colour's limit from which letters on it are white


def layer_strip(costs: Mapping[str, LayerCosts], sent: Mapping[str, pd.DataFrame] | None = None) -> ChartType | None:
    """Return the strips of runs by their names, one below the other; None if nothing was measured.

    Parameters
    ----------
    costs
        What averaging each layer costs; all from the same view.
    sent
        Share of the clients that sent each layer, layers by rounds, which a line below the layer marks.
    """
    shown = dict(list(costs.items())[:MOST_STRIPS])
    if not shown:
        return None
    cells, full = strip_cells(shown, sent or {})
    layers = pd.concat([_places(each).assign(g=number) for number, each in enumerate(shown.values())])
    layers["k"] = _key(layers["g"], layers["l"])
    first = next(iter(shown.values()))
    limit, _ = colour_limit([cells["m"].to_numpy(dtype=float)])
    # Intervals may be far wider than what they are of; what leaves the scale is cut, and the hover has it.
    means = cells["m"].to_numpy(dtype=float)
    means = means[np.isfinite(means)]
    low, high = min(0.0, means.min(initial=0)), max(0.0, means.max(initial=0))
    margin = 0.35 * (high - low) or 1.0
    rounds = sorted(set(cells["r"]))
    at = alt.param("round", value=rounds[-1], bind=_slider(rounds)) if len(rounds) > 1 else None
    place = _place_of(low - margin, high + margin)
    base, channels = _placed(cells, layers, place, at), _channels(first.unit, limit, len(shown))
    chart = alt.layer(
        _blocks(base, channels),
        *_intervals(base, channels, place, len(shown)),
        _sent(base, channels),
        *_texts(base, channels, limit),
        *_titles(full, shown, first.unit, at, channels.y_scale),
        height=HEIGHT * len(shown),
        width="container",
    )
    return chart.add_params(at) if at is not None else chart


def strip_cells(costs: Mapping[str, LayerCosts], sent: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of the layers, and those of all layers together, of as many rounds as a page has room for.

    Columns: ``g`` number of the strip, ``l`` of the layer, ``r`` the measured round and ``e`` the last one before the
    next of it, ``m, a, b`` mean and interval, ``x, y`` least and most of a client, ``c`` clients, ``w`` of them that
    lose, ``u`` share of the clients that sent the layer.
    """
    tables = []
    every = sum(len(each.sizes) for each in costs.values())
    for number, (name, each) in enumerate(costs.items()):
        measured = sorted(set(each.rows["round"]))
        kept = thinned(measured, max(2, MOST_ROWS // max(1, every)))
        until = {r: following - 1 for r, following in zip(kept, [*kept[1:], 10**9], strict=True)}
        rows = each.rows[each.rows["round"].isin(kept)]
        numbers = {layer: place for place, layer in enumerate(each.sizes.index)} | {FULL: -1}
        share = sent.get(name, pd.DataFrame())
        tables.append(
            pd.DataFrame(
                {
                    "g": number,
                    "l": [numbers[layer] for layer in rows["layer"]],
                    "r": rows["round"].astype(int),
                    "e": [until[r] for r in rows["round"]],
                    "m": rows["mean"],
                    "a": rows["low"],
                    "b": rows["high"],
                    "x": rows["least"],
                    "y": rows["most"],
                    "c": rows["clients"].astype(int),
                    "w": rows["lose"].astype(int),
                    "u": [_share(share, layer, r) for layer, r in zip(rows["layer"], rows["round"], strict=True)],
                }
            )
        )
    table = pd.concat(tables, ignore_index=True)
    return table[table["l"] >= 0], table[table["l"] < 0]


def _share(sent: pd.DataFrame, layer: str, server_round: int) -> float:
    known = layer in sent.index and server_round in sent.columns
    return float(sent[server_round][layer]) if known else 0.0


def _places(costs: LayerCosts) -> pd.DataFrame:
    """Return where each layer begins and ends, of a width of 1: by its bytes, but no layer is too thin to be seen."""
    sizes = costs.sizes.to_numpy(dtype=float)
    ends = np.cumsum(shares_of(costs.sizes))
    return pd.DataFrame(
        {
            "l": range(len(sizes)),
            "p": np.concatenate([[0.0], ends[:-1]]),
            "q": ends,
            "n": distinct(list(costs.sizes.index)),
            "z": [format_bytes(size) if np.isfinite(size) else "not known" for size in sizes],
        }
    )


def widths_are_known(costs: LayerCosts) -> bool:
    """Tell whether the records have the sizes of all layers."""
    return bool(np.isfinite(costs.sizes).all())


def _key(strip: pd.Series, layer: pd.Series) -> pd.Series:
    return 10_000 * strip + layer


def _slider(rounds: list[int]) -> alt.BindRange:
    steps = set(np.diff(rounds).tolist())
    step = steps.pop() if len(steps) == 1 else 1
    return alt.binding_range(min=rounds[0], max=rounds[-1], step=step, name="round ")


def _place_of(low: float, high: float) -> str:
    """Return the expression of the height of a value, ``{}``, below the blocks of its strip."""
    share = f"(clamp({{}}, {low:.6g}, {high:.6g}) - {low:.6g}) / {high - low:.6g}"
    return f"datum.g + {LOWEST} - {LOWEST - HIGHEST} * {share}"


@dataclass(frozen=True)
class _Channels:
    """What the marks of all strips have in common."""

    x: alt.X
    colour: alt.Color
    tooltip: list[Tooltip]
    y_scale: Scale

    def y(self, name: str) -> alt.Y:
        """Return the vertical axis of a field."""
        return alt.Y(f"{name}:Q", axis=None, scale=self.y_scale)


def _channels(unit: str, limit: float, strips: int) -> _Channels:
    colour = alt.Color(
        "m:Q",
        scale=Scale(range=list(DIVERGING), domain=[-limit, limit], clamp=True, interpolate="rgb"),
        legend=Legend(
            title=f"loss with the average minus own ({unit})",
            titleLimit=0,
            orient="top",
            direction="horizontal",
            gradientLength=160,
        ),
    )
    tooltip = [
        Tooltip("n:N", title="layer"),
        Tooltip("r:Q", title="measured in round"),
        Tooltip("m:Q", title=f"cost, mean ({unit})", format="+.3~g"),
        Tooltip("interval:N", title="95 % interval"),
        Tooltip("range:N", title="single clients"),
        Tooltip("loses:N", title="clients that lose"),
        Tooltip("z:N", title="size"),
        Tooltip("u:Q", title="sent by share of clients", format=".0%"),
    ]
    x = alt.X("p:Q", axis=None, scale=Scale(domain=[0, 1], nice=False, zero=False))
    return _Channels(x, colour, tooltip, Scale(domain=[0, strips], reverse=True, nice=False))


def _placed(cells: pd.DataFrame, layers: pd.DataFrame, place: str, at: alt.Parameter | None) -> alt.Chart:
    """Return the chart of the cells in the chosen round, with where each is and what its tooltip says.

    Parameters
    ----------
    place
        Expression of the height of a value within its strip, in which ``{}`` stands for the value.
    """
    cells = cells.assign(k=_key(cells["g"], cells["l"])).drop(columns="l")
    base = alt.Chart(values_of(cells))
    base = base.transform_filter("datum.r <= round && round <= datum.e") if at is not None else base
    fields = ["p", "q", "n", "z"]
    places = alt.LookupData(data=values_of(layers[["k", *fields]]), key="k", fields=fields)
    return base.transform_lookup(lookup="k", from_=places).transform_calculate(
        top=f"datum.g + {TOP}",
        bottom=f"datum.g + {BOTTOM}",
        ym=place.format("datum.m"),
        ya=place.format("datum.a"),
        yb=place.format("datum.b"),
        middle="(datum.p + datum.q) / 2",
        interval="format(datum.a, '+.3~g') + ' to ' + format(datum.b, '+.3~g')",
        range="format(datum.x, '+.3~g') + ' to ' + format(datum.y, '+.3~g')",
        start="datum.g",
        number="format(datum.m, '+.2~g')",
        loses="datum.w + ' of ' + datum.c",
    )


def _blocks(base: alt.Chart, channels: _Channels) -> alt.Chart:
    """Return the coloured block of each layer."""
    return base.mark_rect(stroke="white", strokeWidth=1).encode(
        x=channels.x,
        x2=alt.X2("q:Q"),
        y=channels.y("top"),
        y2=alt.Y2("bottom:Q"),
        color=channels.colour,
        tooltip=channels.tooltip,
    )


def _intervals(base: alt.Chart, channels: _Channels, place: str, strips: int) -> list[alt.Chart]:
    """Return each mean with its interval below the block of its layer, and a line at 0."""
    x, tooltip = channels.x, channels.tooltip
    band = base.mark_rect(fillOpacity=0.6, stroke="#888888", strokeWidth=0.5).encode(
        x=x, x2=alt.X2("q:Q"), y=channels.y("ya"), y2=alt.Y2("yb:Q"), color=channels.colour, tooltip=tooltip
    )
    zero = (
        alt.Chart({"values": [{"g": number} for number in range(strips)]})
        .transform_calculate(y=place.format("0"))
        .mark_rule(strokeDash=[3, 3], strokeWidth=1)
        .encode(y=channels.y("y"))
    )
    mean = base.mark_rule(strokeWidth=2).encode(x=x, x2=alt.X2("q:Q"), y=channels.y("ym"), tooltip=tooltip)
    return [band, zero, mean]


def _sent(base: alt.Chart, channels: _Channels) -> alt.Chart:
    """Return the line below the layers that clients sent."""
    shown = alt.Opacity("u:Q", scale=Scale(domain=[0, 1]), legend=None)
    line = base.transform_filter("datum.u > 0").mark_rule(strokeWidth=2.5)
    return line.encode(x=channels.x, x2=alt.X2("q:Q"), y=channels.y("bottom"), opacity=shown)


def _texts(base: alt.Chart, channels: _Channels, limit: float) -> list[alt.Chart]:
    """Return the name and the number of each layer that has room for them."""
    dark = f"abs(datum.m) > {WHITE_FROM * limit:.6g}"
    ink = alt.ColorValue(**alt.condition(dark, alt.value("white"), alt.value("black")))
    middle = (BOTTOM + TOP) / 2 * HEIGHT

    def written(text: str, among: alt.Chart, offset: float, **style: Any) -> alt.Chart:
        at_middle = {
            "x": alt.X("middle:Q", axis=None),
            "y": channels.y("start"),
            "yOffset": alt.YOffsetValue(middle + offset),
        }
        return among.mark_text(fontSize=11, **style).encode(
            **at_middle, text=alt.Text(text), color=ink, tooltip=channels.tooltip
        )

    names = written("n:N", base, -7, limit=alt.ExprRef("max(0, (datum.q - datum.p) * width - 4)"))
    # A number that is cut would be another number.
    wide = base.transform_filter(f"(datum.q - datum.p) * width > {NUMBER}")
    return [names, written("number:N", wide, 8)]


def _titles(
    full: pd.DataFrame, costs: Mapping[str, LayerCosts], unit: str, at: alt.Parameter | None, y_scale: Scale
) -> list[alt.Chart]:
    """Return the name above each strip, with the cost of averaging all layers together."""
    lines = [{"g": number, "t": name} for number, name in enumerate(distinct(list(costs), 60))]
    y = alt.Y("y:Q", axis=None, scale=y_scale)
    name = (
        alt.Chart({"values": lines})
        .transform_calculate(y=f"datum.g + {TITLE}")
        .mark_text(align="left", fontWeight="bold", fontSize=12)
        .encode(x=alt.XValue(0), y=y, text=alt.Text("t:N"))
    )
    if full.empty:
        return [name]
    together = alt.Chart(values_of(full[["g", "r", "e", "m", "a", "b"]]))
    together = together.transform_filter("datum.r <= round && round <= datum.e") if at is not None else together
    together = (
        together.transform_calculate(
            y=f"datum.g + {TOGETHER}",
            t="'all layers together ' + format(datum.m, '+.2f') + (isValid(datum.a) ? "
            "' (' + format(datum.a, '+.2f') + ' to ' + format(datum.b, '+.2f') + ')' : '')",
        )
        .mark_text(align="left", fontSize=11)
        .encode(x=alt.XValue(0), y=y, text=alt.Text("t:N"))
    )
    return [name, together]
