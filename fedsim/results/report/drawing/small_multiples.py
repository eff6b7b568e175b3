"""Curves of many groups of layers, one small panel each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedsim.results.report.drawing import plotting
from fedsim.results.report.drawing.style import (
    SHORT_NAME,
    STYLE,
    WIDTH,
    legend_name,
    legend_outside,
    line_style,
    log_scale,
    log_values,
    round_axis,
    short,
)
from fedsim.results.report.palette import COLOURS, MARKERS

ACROSS, MOST_PANELS = 4, 32
HEIGHT = 1.45  # inches
MANY_POINTS = 12


@dataclass(frozen=True)
class Curve:
    """A line with a band.

    Parameters
    ----------
    points
        Columns ``value, low, high`` over the positions, in their order; NaN bounds draw no band.
    number
        Number of its colour and line style; curves with the same label share it.
    """

    label: str
    points: pd.DataFrame
    number: int


@dataclass(frozen=True)
class SmallMultiples:
    """The curves of groups, a panel each: drawn for a file, and a chart on a page.

    Parameters
    ----------
    x, y
        Labels of the axes.
    log, log_y
        Whether positions, and values, are on a logarithmic scale.
    of_rounds
        Whether positions are rounds.
    """

    panels: Mapping[str, Sequence[Curve]]
    x: str
    y: str
    log: bool = False
    log_y: bool = False
    of_rounds: bool = False

    def figure(self) -> plotting.Figure:
        """Draw the panels; all except ``full`` share a scale.

        If there are more than 32 groups, those whose curves move furthest from their start are drawn.
        """
        kept = most_moving(self.panels)
        across = min(ACROSS, len(kept))
        lines = -(-len(kept) // across)
        limits = _limits([curve for group, curves in kept.items() if group != "full" for curve in curves], self.log_y)
        with plotting.rc_context(STYLE | {"font.size": 8, "axes.titlesize": 8}):
            figure = plotting.Figure(
                figsize=(WIDTH, 0.7 + HEIGHT * lines + (0.6 if lines == 1 else 0)), layout="constrained"
            )
            grid = figure.subplots(lines, across, squeeze=False, sharex=True).ravel()
            for axes, (group, curves) in zip(grid, kept.items(), strict=False):
                for curve in curves:
                    _draw(axes, curve)
                if not self.log_y and _crosses_zero(curves):
                    axes.axhline(0, color="black", linewidth=0.6, zorder=1)
                axes.set_title(short(group, SHORT_NAME + 8), fontweight="bold" if group == "full" else "normal")
                if group != "full" and limits:
                    axes.set_ylim(*limits)
                if self.log:
                    log_scale(axes, "x")
                if self.log_y:
                    log_values(axes)
                else:
                    axes.yaxis.set_major_locator(plotting.MaxNLocator(4))
            for axes in grid[len(kept) :]:
                axes.set_visible(False)
            for column in range(across):  # a line's last panels may be missing, and ticks are shown at the bottom only
                lowest = grid[: len(kept)][column::across][-1]
                lowest.tick_params(labelbottom=True)
            figure.supxlabel("" if self.of_rounds else self.x, fontsize=9)
            figure.supylabel(self.y, fontsize=9)
            legend_outside(figure, grid[0], above=True)
        for axes in figure.axes if self.of_rounds else ():
            round_axis(axes)
        return figure


def _draw(axes: plotting.Axes, curve: Curve) -> None:
    points = curve.points
    axes.fill_between(
        points.index, points["low"], points["high"], color=COLOURS[curve.number % len(COLOURS)], alpha=0.2, linewidth=0
    )
    marker = MARKERS[curve.number % len(MARKERS)] if len(points) <= MANY_POINTS else ""
    axes.plot(
        points.index,
        points["value"],
        **line_style(curve.number),
        marker=marker,
        markersize=3,
        linewidth=1.2,
        label=legend_name(curve.label),
    )


def most_moving(panels: Mapping[str, Sequence[Curve]]) -> Mapping[str, Sequence[Curve]]:
    """Return the panels that are drawn: all, or of many those whose curves move furthest from their start."""
    if len(panels) <= MOST_PANELS:
        return panels
    reach = {
        group: max(float((curve.points["value"] - curve.points["value"].iloc[0]).abs().max()) for curve in curves)
        for group, curves in panels.items()
    }
    chosen = set(sorted(panels, key=lambda group: (group != "full", -np.nan_to_num(reach[group])))[:MOST_PANELS])
    return {group: curves for group, curves in panels.items() if group in chosen}


def _limits(curves: Sequence[Curve], log: bool) -> tuple[float, float] | None:
    """Return common limits of the values and their bands, with a margin."""
    values = np.concatenate([curve.points.to_numpy(dtype=float).ravel() for curve in curves] or [np.zeros(0)])
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not len(values) or values.min() == values.max():
        return None
    values = np.log(values) if log else values
    margin = 0.06 * float(values.max() - values.min())
    low, high = float(values.min()) - margin, float(values.max()) + margin
    return (math.exp(low), math.exp(high)) if log else (low, high)


def _crosses_zero(curves: Sequence[Curve]) -> bool:
    values = np.concatenate([curve.points["value"].to_numpy(dtype=float) for curve in curves])
    return bool((values <= 0).any() and (values >= 0).any())
