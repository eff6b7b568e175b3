"""Figures that compare settings by the mean over their seeds: a colour per strategy, a panel per swept value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from fedsim.results.report.comparing import costs
from fedsim.results.report.comparing.groups import Group, by_seed
from fedsim.results.report.comparing.units import format_bytes, format_count
from fedsim.results.report.drawing import plotting
from fedsim.results.report.drawing.style import (
    MANY_LINES,
    STYLE,
    WIDTH,
    draw_line,
    folded,
    legend_height,
    legend_name,
    legend_outside,
    log_scale,
    look_style,
    metric_axis,
    metric_label,
    percents,
    round_axis,
)
from fedsim.results.report.facets import Line, Panel, lines_of
from fedsim.training.metrics import MAIN, metric_of

MOST_BANDS = 8  # more would hide each other
BOX, THIN_BOX = 0.5, 0.3  # inches per box, and per box where there are many
NAME = 60  # letters of a box's name in a line
WRITTEN: Mapping[str, Callable[[float], str]] = {costs.BYTES: format_bytes, costs.PASSES: format_count}
COST_AXIS = {
    "rounds": "round",
    costs.BYTES: "traffic up and down so far, all clients",
    costs.PASSES: "training passes so far, all clients (examples)",
    "seconds": "wall time so far (s)",
}
TITLE = "Personalised models, clients' own test data (mean)"
GLOBAL_TITLE = "Global model, server's test data"


def compared_curves(panels: Sequence[Panel], metric: str = MAIN) -> plotting.Figure:
    """Draw a metric of the personalised and the global models over the rounds, with the range of the seeds.

    Each strategy has a line, and swept settings have a row of panels for each of their values. There are gaps where a
    value of a client or of a seed is missing.
    """
    names = lines_of(panels)
    with plotting.rc_context(STYLE):
        height = _height(len(names), len(panels)) * len(panels)
        figure = plotting.Figure(figsize=(WIDTH, height + legend_height(names)), layout="constrained")
        grid = figure.subplots(len(panels), 2, squeeze=False, sharex="col", sharey="col")
        for row, panel in zip(grid, panels, strict=True):
            for line in panel.lines:
                draw_seeds(row[0], line, personalised(line.group, metric), bands=len(panel.lines) <= MOST_BANDS)
                draw_seeds(row[1], line, on_server(line.group, metric), bands=len(panel.lines) <= MOST_BANDS)
            for axes, title in zip(row, (TITLE, GLOBAL_TITLE), strict=True):
                axes.set_title("\n".join(filter(None, (title if panel is panels[0] else "", folded(panel.title, 60)))))
                metric_axis(axes, meant_of(panels, metric))
        for axes in grid[-1]:
            round_axis(axes)
        legend_outside(figure, list(grid[:, 0]))
        return figure


def compared_costs(panels: Sequence[Panel], what: str, metric: str = MAIN) -> plotting.Figure:
    """Draw a metric of the personalised models against the cost so far; a setting without costs is a horizontal line.

    Parameters
    ----------
    what
        ``bytes`` or ``passes``.
    """
    names = lines_of(panels)
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    with plotting.rc_context(STYLE):
        figure = plotting.Figure(
            figsize=(WIDTH, _height(len(names), down) * down + legend_height(names)), layout="constrained"
        )
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        every = list(grid.ravel())
        for axes, panel in zip(every, panels, strict=False):
            for line in panel.lines:
                draw_cost(axes, line, personalised(line.group, metric), what, bands=len(panel.lines) <= MOST_BANDS)
            axes.set_title(folded(panel.title, 60) or TITLE)
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        cost_axis(every[0], what)
        for row in grid:
            metric_axis(row[0], meant_of(panels, metric))
        for place in range(across):
            lowest = every[: len(panels)][place::across][-1]
            lowest.tick_params(labelbottom=True)
            lowest.set_xlabel(COST_AXIS[what])
        if panels[0].title:
            figure.suptitle(TITLE, fontsize=11)
        legend_outside(figure, every[: len(panels)])
        return figure


def compared_clients(panels: Sequence[Panel]) -> plotting.Figure:
    """Draw the distribution of personalised accuracy over the clients of all seeds: a point each, with quartiles."""
    lines = [line for panel in panels for line in panel.lines]
    names = [", ".join(filter(None, (line.name, panel.title))) for panel in panels for line in panel.lines]
    box = BOX if len(lines) <= MANY_LINES else THIN_BOX
    with plotting.rc_context(STYLE):
        figure = plotting.Figure(figsize=(WIDTH, 1.4 + box * len(lines)), layout="constrained")
        axes = figure.subplots()
        draw_boxes(axes, lines, size=5 if box == BOX else 3.5)
        axes.set_yticks(range(1, len(lines) + 1), [folded(name, NAME) for name in names])
        main = meant_of(panels)
        axes.set_xlabel(f"{metric_label(main)}, personalised model on the client's own test data")
        return figure


def draw_boxes(
    axes: plotting.Axes, lines: Sequence[Line], *, size: float, metric: str = MAIN, rows: Sequence[str] | None = None
) -> None:
    """Draw a box with a point for each client of each seed, the first at the top.

    Parameters
    ----------
    size
        Size of the points.
    rows
        Names of all rows, where there are more than these lines; by default a line has the row of its place.
    """
    places = [1 + (place if rows is None else rows.index(line.name)) for place, line in enumerate(lines)]
    values = [own_values(line.group, metric) for line in lines]
    axes.boxplot(
        values,
        positions=places,
        orientation="horizontal",
        widths=0.5,
        showfliers=False,
        medianprops={"color": "black", "linewidth": 0.4 * size},
    )
    for place, points, line in zip(places, values, lines, strict=True):
        # Spread over the height in the order of their values, so that equal points do not hide each other.
        offsets = np.linspace(-0.18, 0.18, len(points)) if len(points) > 1 else np.zeros(len(points))
        axes.plot(np.sort(points), place + offsets, "o", color=line.look.colour, alpha=0.7, markersize=size, mew=0)
    axes.set_ylim(len(lines if rows is None else rows) + 0.6, 0.4)
    axes.grid(axis="y", visible=False)
    meant = next((result.meant(metric) for line in lines for result in line.group.members), metric)
    if metric_of(meant).unit == "share":
        percents(axes.xaxis)


def own_values(group: Group, metric: str = MAIN) -> np.ndarray:
    """Return the personalised models' values of all clients of all seeds that have one."""
    values = [result.by_client("personalised", metric).dropna().to_numpy(dtype=float) for result in group.members]
    return np.concatenate(values)


def meant_of(panels: Sequence[Panel], metric: str = MAIN) -> str:
    """Return the metric of all runs that is meant: of those without accuracy, their main one."""
    members = (result for panel in panels for line in panel.lines for result in line.group.members)
    return next((result.meant(metric) for result in members), metric)


def personalised(group: Group, metric: str = MAIN) -> pd.DataFrame:
    """Return the clients' mean on their own test data by round, a column per seed, in the rounds that all have."""
    return by_seed(group.members, lambda result: result.mean_by_round(metric=metric))


def on_server(group: Group, metric: str = MAIN) -> pd.DataFrame:
    """Return the global model's values on the server's test data by round, a column per seed."""
    return by_seed(group.members, lambda result: result.on_server("global", metric))


def spent(group: Group, what: str, rounds: pd.Index) -> pd.Series:
    """Return the mean cost over the seeds up to each of some rounds."""
    return by_seed(group.members, lambda result: costs.spent(result, what)).mean(axis=1, skipna=False).reindex(rounds)


def draw_seeds(axes: plotting.Axes, line: Line, values: pd.DataFrame, *, bands: bool = True, size: float = 4) -> None:
    """Draw the mean over the seeds as a line, and their range as a band."""
    draw_line(axes, values.mean(axis=1, skipna=False), line.name, line.look, size=size)
    if bands and values.shape[1] > 1:
        low, high = values.min(axis=1, skipna=False), values.max(axis=1, skipna=False)
        axes.fill_between(values.index, low, high, color=line.look.colour, alpha=0.15, linewidth=0)


def draw_cost(
    axes: plotting.Axes, line: Line, values: pd.DataFrame, what: str, *, bands: bool = True, size: float = 4
) -> None:
    """Draw values against what was spent; if nothing was, the last one as a horizontal line."""
    cost = spent(line.group, what, values.index)
    if cost.isna().all():
        return
    if not cost.any():
        name = f"{line.name}, {costs.FREE[what]}" if what in costs.FREE else line.name
        last = float(values.mean(axis=1, skipna=False).iloc[-1])
        axes.axhline(last, **look_style(line.look), label=legend_name(name))
        return
    draw_seeds(axes, line, values.set_axis(cost), bands=bands, size=size)


def cost_axis(axes: plotting.Axes, what: str) -> None:
    """Write costs below an axis: bytes on a logarithmic scale where there is room for two ticks."""
    low, high = axes.dataLim.intervalx
    if what == costs.BYTES and 0 < low < high and len(_log_ticks(low, high)) > 1:
        log_scale(axes, "x")
        axes.xaxis.set_major_locator(plotting.LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=12))
        axes.xaxis.set_minor_formatter(plotting.NullFormatter())
    else:
        axes.set_xlim(left=0)
    if what in WRITTEN:
        axes.xaxis.set_major_formatter(plotting.FuncFormatter(lambda value, _: WRITTEN[what](value)))


def _log_ticks(low: float, high: float) -> list[float]:
    """Return the numbers 1, 2 and 5 times a power of ten between two numbers."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _height(lines: int, panels: int) -> float:
    """Return the inches of the axes; many lines need room."""
    return 2.5 if panels > 1 else 3.2 if lines <= MANY_LINES else 4.5
