"""Heat maps on one colour scale, with each cell's value on hover."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.vegalite.v6.api import ChartType

from fedsim.results.report.charts.compact import MOST_ROWS, chart_of, distinct, thinned
from fedsim.results.report.charts.parts import Axis, Legend, Scale, Tooltip
from fedsim.results.report.drawing.heat_maps import HeatMaps, domain_of
from fedsim.results.report.palette import NOT_MEASURED

ROW, WIDTH = 17, 380  # pixels
MOST_NUMBERS = 8  # columns whose cells are wide enough for numbers, on a narrow screen too
ROUND = "round"


def heat_map_chart(maps: HeatMaps) -> ChartType | None:
    """Return a panel for each table; of many rounds, as many as there is room for. None if there is no value."""
    tables = _with_room(maps)
    factor = maps.quantity.factor
    rows, columns = _names([table.index for table in tables]), _names([table.columns for table in tables])
    cells = pd.concat([_cells(table, rows, columns, factor).assign(p=number) for number, table in enumerate(tables)])
    if cells.empty:
        return None
    base = chart_of(cells, y=distinct([str(name) for name in rows]), x=distinct([str(name) for name in columns]))
    low, high, _ = domain_of(tables, maps.quantity)
    scale = Scale(range=list(maps.quantity.scale), domain=[low, high], clamp=True, interpolate="rgb")
    colour = alt.Color(
        "v:Q", scale=scale, legend=Legend(title=maps.quantity.label.split("\n"), titleLimit=0, format=".3~g")
    )
    panels = [
        _panel(
            base.transform_filter(f"datum.p == {number}") if len(tables) > 1 else base,
            title,
            maps,
            colour,
            table,
            high,
        )
        for number, (title, table) in enumerate(zip(maps.tables, tables, strict=True))
    ]
    return panels[0] if len(panels) == 1 else alt.concat(*panels, columns=min(maps.across, len(panels)))


def _panel(
    base: alt.Chart, title: str, maps: HeatMaps, colour: alt.Color, table: pd.DataFrame, limit: float
) -> ChartType:
    whole = maps.columns == ROUND or all(isinstance(name, int | np.integer) for name in table.columns)
    x = alt.X(
        "x_name:O",
        title=maps.columns or None,
        sort=alt.EncodingSortField("x", op="min"),
        # Vega leaves out turned names that would not touch.
        axis=Axis(
            labelAngle=0 if whole else -60, labelOverlap=whole or len(table.columns) > MOST_NUMBERS, labelLimit=110
        ),
    )
    y = alt.Y(
        "y_name:O",
        title=maps.rows or None,
        sort=alt.EncodingSortField("y", op="min"),
        axis=Axis(labelOverlap=True, labelLimit=130, ticks=False),
    )
    tooltip = [
        Tooltip("y_name:N", title=maps.rows or "layer"),
        Tooltip("x_name:N", title=maps.columns or "with"),
        Tooltip("v:Q", title=maps.quantity.label.split("\n")[0], format=".4~g"),
    ]
    cells = base.mark_rect().encode(x=x, y=y, color=colour, tooltip=tooltip)
    properties = {
        "title": alt.Title(title.split("\n")),
        "width": WIDTH,
        "height": max(2, len(table)) * ROW,
        "view": alt.ViewBackground(fill=NOT_MEASURED, fillOpacity=0.35),
    }
    if len(table.columns) > MOST_NUMBERS:
        return cells.properties(**properties)
    dark = f"{'abs(datum.v)' if maps.quantity.signed else 'datum.v'} > {0.6 * limit:.6g}"
    numbers = base.mark_text(fontSize=10).encode(
        x=x,
        y=y,
        text=alt.Text("v:Q", format=".3~g"),
        color=alt.ColorValue(**alt.condition(dark, alt.value("white"), alt.value("black"))),
    )
    return alt.layer(cells, numbers.encode(tooltip=tooltip)).properties(**properties)


def _with_room(maps: HeatMaps) -> list[pd.DataFrame]:
    """Return the tables with all columns, or with those rounds that there is room for."""
    tables = list(maps.tables.values())
    height = sum(len(table) for table in tables)
    if maps.columns != ROUND or sum(table.size for table in tables) <= MOST_ROWS:
        return tables
    kept = thinned([int(r) for table in tables for r in table.columns.to_numpy()], max(2, MOST_ROWS // max(1, height)))
    return [table[[name for name in table.columns if name in set(kept)]] for table in tables]


def _names(indexes: Sequence[pd.Index]) -> list[Any]:
    """Return all names in their order, numbers by size."""
    names: list[Any] = list(dict.fromkeys(name for index in indexes for name in index))
    return sorted(names) if all(isinstance(name, int | float | np.number) for name in names) else names


def _cells(table: pd.DataFrame, rows: Sequence[Any], columns: Sequence[Any], factor: float) -> pd.DataFrame:
    """Return the numbers of rows and columns with the values that are known."""
    of_rows, of_columns = pd.Index(rows).get_indexer(table.index), pd.Index(columns).get_indexer(table.columns)
    values = table.to_numpy(dtype=float) * factor
    y, x = np.nonzero(np.isfinite(values))
    return pd.DataFrame(
        {
            "y": of_rows[y],
            "x": of_columns[x],
            "v": values[y, x],
        }
    )
