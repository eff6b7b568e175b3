"""Curves over a model's layers in forward order, one panel below the other, so that a layer is one line through all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from fedsim.results.report.drawing import plotting
from fedsim.results.report.drawing.small_multiples import Curve
from fedsim.results.report.drawing.style import (
    SHORT_NAME,
    STYLE,
    WIDTH,
    legend_name,
    line_style,
    log_values,
    short,
)
from fedsim.results.report.palette import COLOURS, MARKERS

PANEL, LETTER = 1.3, 0.06  # inches: height of a panel, and length of an upright name's letter
MOST_NAMES = 60
SMALLEST = 1e-9  # on a logarithmic scale; smaller values are 0 up to rounding


@dataclass(frozen=True)
class LayerPanel:
    """Curves that share a scale, over the names of layers.

    Parameters
    ----------
    mark
        Value to mark by a line.
    """

    title: str
    curves: Sequence[Curve]
    log: bool = False
    mark: float | None = None


@dataclass(frozen=True)
class LayerCurves:
    """Panels of curves over layers: drawn for a file, and a chart on a page."""

    panels: Sequence[LayerPanel]

    @property
    def known(self) -> list[LayerPanel]:
        """The panels that have a value."""
        return [each for each in self.panels if any(curve.points["value"].notna().any() for curve in each.curves)]

    @property
    def layers(self) -> list[str]:
        """The layers of these panels, in their order."""
        curves = [curve for panel in self.known for curve in panel.curves]
        return list(dict.fromkeys(layer for curve in curves for layer in curve.points.index))

    def figure(self) -> plotting.Figure:
        """Draw the panels that have a value."""
        panels, layers = self.known, self.layers
        names = [short(layer, SHORT_NAME) for layer in layers]
        height = 0.3 + (PANEL + 0.25) * len(panels) + LETTER * max(map(len, names), default=0)
        with plotting.rc_context(STYLE | {"font.size": 8, "axes.titlesize": 9}):
            figure = plotting.Figure(figsize=(WIDTH, max(2.2, height)), layout="constrained")
            column = figure.subplots(max(1, len(panels)), 1, squeeze=False, sharex=True)[:, 0]
            for axes, panel in zip(column, panels, strict=False):
                _draw_panel(axes, panel, layers)
            step = -(-len(names) // MOST_NAMES) if names else 1
            column[-1].set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=7)
            column[-1].set_xlim(-0.5, max(1, len(names)) - 0.5)
            return figure


def spread(rows: pd.DataFrame, values: pd.Series, factor: float = 1.0) -> pd.DataFrame:
    """Return by layer, in the rows' order, the mean of values, with the smallest and the largest as its band."""
    grouped = (factor * values).groupby(rows["layer"], sort=False)
    return pd.DataFrame({"value": grouped.mean(), "low": grouped.min(), "high": grouped.max()})


def _draw_panel(axes: plotting.Axes, panel: LayerPanel, layers: Sequence[str]) -> None:
    for curve in panel.curves:
        points = curve.points.astype(float)
        points = (points.where(points > SMALLEST) if panel.log else points).dropna(subset="value")
        places = [layers.index(layer) for layer in points.index]
        colour = COLOURS[curve.number % len(COLOURS)]
        axes.fill_between(places, points["low"], points["high"], color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            places,
            points["value"],
            **line_style(curve.number),
            marker=MARKERS[curve.number % len(MARKERS)],
            markersize=3,
            linewidth=1.2,
            label=legend_name(curve.label),
        )
    if panel.mark is not None:
        axes.axhline(panel.mark, color="black", linewidth=0.6, zorder=1)
    if panel.log and any((curve.points["value"] > SMALLEST).any() for curve in panel.curves):
        log_values(axes)
    else:
        axes.yaxis.set_major_locator(plotting.MaxNLocator(4))
    axes.set_title(panel.title, loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
