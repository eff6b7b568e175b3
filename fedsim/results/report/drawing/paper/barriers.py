"""A paper's figures of barriers: heat maps by layer and round, and the layer strip."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fedsim.errors import ConfigError
from fedsim.results.measured import Kind, by_kind
from fedsim.results.report.charts.layer_costs import FULL, LayerCosts, layer_costs, shares_of
from fedsim.results.report.drawing.barriers import compared_barriers
from fedsim.results.report.drawing.heat_maps import colour_map, inks
from fedsim.results.report.drawing.paper.frame import LETTERS, PAPER, Frame
from fedsim.results.report.drawing.style import folded, short
from fedsim.results.report.facets import Line, Panel
from fedsim.results.report.palette import DIVERGING, NOT_MEASURED

NONE = "no barriers were measured in {which}; set [barriers] every, and run again"
ROW, NAME = 0.27, 22  # inches of a strip, and letters in a line of its name
LETTER = 0.062  # inches, on average
MOST_MAPS = 4  # next to each other, as wide as a page
NUMBER = 0.46  # inches that a layer is wide at least where there is room: as wide as a number
ON = {
    "clients": "clients' own test data",
    "train": "all clients' training data",
    "server": "server's test data",
}


def barriers(panels: Sequence[Panel], frame: Frame) -> Figure:
    """Draw the barriers against the average by layer and round, on the clients' own data where these were measured.

    Raises
    ------
    ConfigError
        If a line has no barriers, or not on the data of the others.
    """
    tables: dict[str, pd.DataFrame] = {}
    first: Kind | None = None
    for panel in panels:
        for line in panel.lines:
            measured = [result.barriers for result in line.group.members if len(result.barriers)]
            kinds = by_kind(pd.concat(measured, ignore_index=True)) if measured else {}
            first = first or next(iter(kinds), None)
            if first not in kinds:
                raise ConfigError(NONE.format(which=_name(line, panel)))
            tables[_name(line, panel, ", " if frame.most_across > 1 else "\n")] = kinds[first].dropna(
                axis="columns", how="all"
            )
    lines = max(len(panel.lines) for panel in panels)  # so that a strategy is below itself where that fits
    across = 2 if frame.most_across == 1 else lines if 1 < lines <= MOST_MAPS else min(3, len(tables))
    maps = replace(compared_barriers(tables, "loss"), across=across, inches=frame.width, points=LETTERS)
    with rc_context(PAPER):
        return maps.figure()


def strip(panels: Sequence[Panel], frame: Frame) -> Figure:
    """Draw each strategy's model from input to output, layers as wide as their bytes, coloured by what averaging costs.

    Of few layers, none is narrower than a number. The cost is the mean over clients and seeds of the loss with the
    layer's average minus the client's own loss, in the last measured round; a number in brackets is one whose 95 %
    interval includes 0.

    Raises
    ------
    ConfigError
        If a line has no barriers, or another model or kind of data than the others.
    """
    measured = {panel.title: {line.name: _costs(line, panel) for line in panel.lines} for panel in panels}
    every = [costs for lines in measured.values() for costs in lines.values()]
    first = every[0]
    for costs in every:
        if list(costs.sizes.index) != list(first.sizes.index):
            raise ConfigError("these runs have different models; draw the strips of one model at a time")
        if costs.view != first.view:
            raise ConfigError(
                f"barriers were measured on {ON[first.view]} in some runs and on {ON[costs.view]} in others; "
                "draw each kind by itself"
            )
    rows = [len(lines) for lines in measured.values()]
    means = np.concatenate([_last(costs)["mean"].to_numpy(dtype=float) for costs in every])
    limit = float(np.abs(means[np.isfinite(means)]).max(initial=0.0)) or 1.0
    norm = Normalize(-limit, limit)
    names = [short(str(layer), 18) for layer in first.sizes.index]
    longest = max(len(part) for lines in measured.values() for name in lines for part in _row_name(name).split("\n"))
    inches = frame.width - LETTER * longest - 0.2  # of the layers
    ends = np.concatenate([[0.0], np.cumsum(shares_of(first.sizes, NUMBER / inches, room=0.6))])
    with rc_context(PAPER | {"axes.grid": False}):
        upright = any(LETTER * len(n) > w * inches for n, w in zip(names, np.diff(ends), strict=True))
        below = LETTER * max(map(len, names)) if upright else 0.15
        titles = sum(0.2 for title in measured if title)
        figure = Figure(figsize=(frame.width, ROW * sum(rows) + titles + below + 0.9), layout="constrained")
        grid = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows, sharex=True)[:, 0]
        for axes, (title, lines) in zip(grid, measured.items(), strict=True):
            _strips(axes, lines, ends, norm, inches)
            axes.set_title(folded(title, 40))
        grid[-1].set_xticks((ends[:-1] + ends[1:]) / 2, names, rotation=90 if upright else 0)
        bar = figure.colorbar(
            ScalarMappable(norm, colour_map(DIVERGING)),
            ax=grid.tolist(),
            location="bottom",
            aspect=40,
            pad=0.02,
        )
        bar.ax.locator_params(nbins=5 if inches > 2 else 3)
        figure.supxlabel(f"cost of averaging a layer ({first.unit}),\n{ON[first.view]}", fontsize=LETTERS)
        return figure


def _name(line: Line, panel: Panel, between: str = ", ") -> str:
    return between.join(filter(None, (line.name, panel.title)))


def _row_name(name: str) -> str:
    return folded(name, NAME, 2)


def _costs(line: Line, panel: Panel) -> LayerCosts:
    costs = layer_costs(line.group.members)
    if costs is None:
        raise ConfigError(NONE.format(which=_name(line, panel)))
    return costs


def _last(costs: LayerCosts) -> pd.DataFrame:
    rows = costs.rows[costs.rows["round"] == costs.rows["round"].max()].set_index("layer")
    return rows[rows.index != FULL].reindex(costs.sizes.index)


def _strips(axes: Axes, lines: Mapping[str, LayerCosts], ends: np.ndarray, norm: Normalize, inches: float) -> None:
    cmap = colour_map(DIVERGING)
    for place, costs in enumerate(lines.values()):
        rows = _last(costs)
        values = rows["mean"].to_numpy(dtype=float)
        colours = np.where(np.isfinite(values)[:, None], cmap(norm(values)), 1.0)
        letters = inks(colours)
        for number, value in enumerate(values):
            left, share = ends[number], ends[number + 1] - ends[number]
            colour = colours[number] if np.isfinite(value) else NOT_MEASURED
            axes.barh(place, share, 0.86, left, color=colour, edgecolor="white", linewidth=0.6)
            text = _text(value, float(rows["low"].iloc[number]), float(rows["high"].iloc[number]))
            if LETTER * len(text) < share * inches:
                axes.text(left + share / 2, place, text, ha="center", va="center", color=letters[number])
    axes.set(xlim=(0, 1), ylim=(len(lines) - 0.5, -0.5))
    axes.set_yticks(range(len(lines)), [_row_name(name) for name in lines])
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)


def _text(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return "-"
    text = f"{round(value, 2) + 0.0:+.2f}".replace("-", "\u2212")
    return text if low > 0 or high < 0 else f"({text})"
