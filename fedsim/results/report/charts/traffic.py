"""Bytes by layer and direction: of a run, and of the runs of a comparison."""

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from fedsim.results.report.charts.compact import MOST_ROWS, chart_of, distinct
from fedsim.results.report.charts.parts import Axis, Legend, Scale, Tooltip
from fedsim.results.report.palette import COLOURS, colour_at
from fedsim.results.result import Result

DIRECTIONS = {"up": "up (clients to server)", "down": "down (server to clients)"}
BAR = 18  # pixels
MOST_BARS, MOST_IN_LEGEND = 120, 18
REST = "all others"
DEPTH = ("#9ECAE1", "#6BAED6", "#4292C6", "#2171B5", "#6A51A3", "#54278F")  # from input to output


def bytes_by_layer(members: Sequence[Result]) -> pd.DataFrame:
    """Return bytes up and down of each layer, summed over rounds and clients, mean over the runs.

    Rows are in the order of the layers; what a method sends besides the model has the name of its set in brackets.
    """
    tables = []
    for result in members:
        rows = result.communication
        if rows.empty:
            tables.append(pd.DataFrame({"up": [], "down": []}, dtype=float))
            continue
        sets = rows["set"] if "set" in rows else pd.Series("model", rows.index)
        names = rows["layer"].astype(str).where(sets == "model", rows["layer"].astype(str) + " (" + sets + ")")
        tables.append(rows.groupby(names, sort=False)[["up", "down"]].sum().astype(float))
    order = [*_layers(members), *(name for table in tables for name in table.index)]
    every = [name for name in dict.fromkeys(order) if any(name in table.index for table in tables)]
    total = pd.DataFrame(0.0, index=every, columns=["up", "down"])
    for table in tables:
        total += table.reindex(every).fillna(0.0)
    return total / max(1, len(tables))


def _layers(members: Sequence[Result]) -> list[str]:
    return [str(name) for name in members[0].folder.read_model().get("layers", ())] if members else []


def traffic_chart(bytes_of: Mapping[str, pd.DataFrame]) -> alt.Chart | None:
    """Return a bar for each layer of one run, or for each of several runs with its layers as parts; None for no bytes.

    Parameters
    ----------
    bytes_of
        Tables of `bytes_by_layer` by the names of the runs.
    """
    rows = _rows(bytes_of)
    if rows.empty:
        return None
    return _of_one(rows, bytes_of) if len(bytes_of) == 1 else _of_several(rows, bytes_of)


def _rows(bytes_of: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the bytes that are not 0, with numbers of the run ``g``, of the layer ``l`` and of the direction ``d``."""
    layers = _names(bytes_of)
    found = [
        (number, layers.index(str(name)), way, float(table[direction].iloc[place]))
        for number, table in enumerate(bytes_of.values())
        for place, name in enumerate(table.index)
        for way, direction in enumerate(DIRECTIONS)
    ]
    rows = pd.DataFrame(found, columns=["g", "l", "d", "v"])
    return rows[rows["v"] > 0]


def _names(bytes_of: Mapping[str, pd.DataFrame]) -> list[str]:
    return list(dict.fromkeys(str(name) for table in bytes_of.values() for name in table.index))


def _of_one(rows: pd.DataFrame, bytes_of: Mapping[str, pd.DataFrame]) -> alt.Chart:
    rows, names = _within(rows, distinct(_names(bytes_of)), MOST_BARS)
    return (
        chart_of(rows, l=names, d=list(DIRECTIONS.values()))
        .mark_bar()
        .encode(
            y=alt.Y("l_name:N", title=None, sort=alt.EncodingSortField("l", op="min")),
            x=_bytes_axis("bytes of all rounds"),
            color=alt.Color("d_name:N", title=None, scale=_direction_scale(), legend=Legend(orient="top")),
            order=alt.Order("d:Q"),
            tooltip=_tooltip(l="layer", d="direction"),
        )
        .properties(width="container", height=BAR * max(2, rows["l"].nunique()))
    )


def _of_several(rows: pd.DataFrame, bytes_of: Mapping[str, pd.DataFrame]) -> alt.Chart:
    runs, layers = distinct(list(bytes_of), 48), distinct(_names(bytes_of))
    rows, layers = _within(rows, layers, MOST_ROWS // max(1, len(rows.groupby(["g", "d"]))))
    ways = ["up and down", *DIRECTIONS]
    which = alt.param("direction", value=ways[0], bind=alt.binding_radio(options=ways, name="bytes "))
    few = rows["l"].nunique() <= MOST_IN_LEGEND
    return (
        chart_of(rows, g=runs, l=layers, d=list(DIRECTIONS))
        .transform_filter(f"direction == '{ways[0]}' || direction == datum.d_name")
        .mark_bar(stroke="white", strokeWidth=0.5)
        .encode(
            y=alt.Y(
                "g_name:N",
                title=None,
                sort=alt.EncodingSortField("g", op="min"),
                axis=Axis(labelLimit=220),
                scale=Scale(domain=runs),
            ),
            x=_bytes_axis("bytes, mean over seeds"),
            color=alt.Color(
                "l_name:N",
                scale=Scale(domain=layers, range=_depths(len(layers))),
                legend=Legend(title="layer", orient="top") if few else None,
            ),
            order=alt.Order("l:Q"),
            tooltip=_tooltip(g="run", l="layer", d="direction"),
        )
        .add_params(which)
        .properties(width="container", height=(BAR + 6) * max(2, len(runs)))
    )


def _within(rows: pd.DataFrame, layers: Sequence[str], room: int) -> tuple[pd.DataFrame, list[str]]:
    """Return rows of as many layers as have room, those with the fewest bytes as one, and the layers' names."""
    most = max(1, room - 1)
    if rows["l"].nunique() <= most:
        return rows, list(layers)
    kept = rows.groupby("l")["v"].sum().sort_values(ascending=False).index[:most]
    merged = rows.assign(l=rows["l"].where(rows["l"].isin(kept), len(layers)))
    return merged.groupby(["g", "l", "d"])["v"].sum().reset_index(), [*layers, REST]


def _bytes_axis(title: str) -> alt.X:
    return alt.X("v:Q", title=title, axis=Axis(format="~s", tickCount=5, labelOverlap=True))


def _direction_scale() -> Scale:
    return Scale(domain=list(DIRECTIONS.values()), range=[COLOURS[0], COLOURS[1]])


def _depths(count: int) -> list[str]:
    """Return a colour for each layer, darker towards the output."""
    return [colour_at(DEPTH, place / max(1, count - 1)) for place in range(count)]


def _tooltip(**titles: str) -> list[Tooltip]:
    shown = [Tooltip(f"{field}_name:N", title=title) for field, title in titles.items()]
    return [*shown, Tooltip("v:Q", title="bytes", format=",.0f")]
