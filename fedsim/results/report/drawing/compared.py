"""Figures that compare settings, legible for about thirty of them: means over the seeds."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from fedsim.results.report.comparing import costs
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.comparing.units import format_bytes, format_count
from fedsim.results.report.drawing.style import (
    COLOURS,
    MANY_LINES,
    SHORT_NAME,
    STYLE,
    WIDTH,
    draw_line,
    legend_height,
    legend_name,
    legend_outside,
    line_style,
    log_scale,
    metric_axis,
    round_axis,
    short,
)
from fedsim.results.result import Result
from fedsim.training.metrics import MAIN, label, metric_of

MOST_BANDS = 7  # more would hide each other
BOX, THIN_BOX = 0.5, 0.3  # inches per box, and per box where there are many
WRITTEN: Mapping[str, Callable[[float], str]] = {costs.BYTES: format_bytes, costs.PASSES: format_count}
COST_AXIS = {
    costs.BYTES: "traffic up and down so far, all clients",
    costs.PASSES: "training passes so far, all clients (examples)",
}
FREE = {costs.BYTES: "sends nothing", costs.PASSES: "trains nothing"}
TITLE = "Personalised models, clients' own test data (mean)"


def compared_curves(groups: Mapping[str, Group]) -> Figure:
    """Draw personalised and global accuracy over the rounds, one line per setting, with the range of its seeds.

    There are gaps where a value of a client or of a seed is missing.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, _height(groups) + legend_height(groups)), layout="constrained")
        panels = figure.subplots(1, 2)
        for number, (name, group) in enumerate(groups.items()):
            own = _by_seed(group, lambda result: result.mean_by_round())
            of_server = _by_seed(group, lambda result: result.on_server("global"))
            for axes, values in zip(panels, (own, of_server), strict=True):
                draw_line(axes, values.mean(axis=1, skipna=False), name, number)
                _draw_range(axes, values, number, len(groups))
        for axes, title in zip(panels, (TITLE, "Global model, server's test data"), strict=True):
            axes.set_title(title)
            round_axis(axes)
            metric_axis(axes, main_of(groups))
        legend_outside(figure, panels[0])
        return figure


def compared_costs(groups: Mapping[str, Group], what: str) -> Figure:
    """Draw personalised accuracy against the cost so far; a setting without costs is a horizontal line.

    Parameters
    ----------
    what
        ``bytes`` or ``passes``.
    """
    with rc_context(STYLE):
        names = {name: name if _spends(group, what) else f"{name}, {FREE[what]}" for name, group in groups.items()}
        figure = Figure(figsize=(WIDTH, _height(groups) + legend_height(names.values())), layout="constrained")
        axes = figure.subplots()
        for number, (name, group) in enumerate(groups.items()):
            values = _by_seed(group, lambda result: result.mean_by_round())
            spent = _by_seed(group, lambda result: costs.spent(result, what)).mean(axis=1).reindex(values.index)
            accuracy = values.mean(axis=1, skipna=False)
            if spent.isna().all():
                continue
            if not spent.any():
                axes.axhline(float(accuracy.iloc[-1]), **line_style(number), label=legend_name(names[name]))
                continue
            draw_line(axes, accuracy.set_axis(spent), names[name], number)
            _draw_range(axes, values.set_axis(spent), number, len(groups))
        _cost_axis(axes, what)
        metric_axis(axes, main_of(groups))
        axes.set_title(TITLE)
        legend_outside(figure, axes)
        return figure


def compared_clients(groups: Mapping[str, Group]) -> Figure:
    """Draw the distribution of personalised accuracy over the clients of all seeds: a point each, with quartiles."""
    box = BOX if len(groups) <= MANY_LINES else THIN_BOX
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.4 + box * len(groups)), layout="constrained")
        axes = figure.subplots()
        values = [
            np.concatenate(
                [result.by_client("personalised").dropna().to_numpy(dtype=float) for result in group.members]
            )
            for group in groups.values()
        ]
        axes.boxplot(
            values,
            orientation="horizontal",
            widths=0.5,
            showfliers=False,
            medianprops={"color": "black", "linewidth": 2},
        )
        for number, points in enumerate(values):
            # Spread over the height in the order of their values, so that equal points do not hide each other.
            offsets = np.linspace(-0.18, 0.18, len(points)) if len(points) > 1 else np.zeros(len(points))
            colour, size = COLOURS[number % len(COLOURS)], 5 if box == BOX else 3.5
            axes.plot(np.sort(points), number + 1 + offsets, "o", color=colour, alpha=0.7, markersize=size)
        axes.set_yticks(range(1, len(groups) + 1), [short(name, 2 * SHORT_NAME) for name in groups])
        axes.set_ylim(len(groups) + 0.6, 0.4)
        axes.grid(axis="y", visible=False)
        main = main_of(groups)
        axes.set_xlabel(f"{label(main)} of the personalised model on the client's own test data")
        if metric_of(main).unit == "share":
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        return figure


def main_of(groups: Mapping[str, Group]) -> str:
    """Return the main metric of all runs."""
    return next((result.main for group in groups.values() for result in group.members), MAIN)


def _height(groups: Mapping[str, Group]) -> float:
    """Return the inches of the axes; many lines need room."""
    return 3.2 if len(groups) <= MANY_LINES else 4.5


def _spends(group: Group, what: str) -> bool:
    return any(costs.spent(result, what).iloc[-1] for result in group.members)


def _by_seed(group: Group, of: Callable[[Result], pd.Series]) -> pd.DataFrame:
    """Return a column per run over the rounds that all of them have."""
    return pd.concat([of(result) for result in group.members], axis=1, join="inner", ignore_index=True)


def _draw_range(axes: Axes, values: pd.DataFrame, number: int, lines: int) -> None:
    """Shade from the lowest to the highest seed."""
    if values.shape[1] > 1 and lines <= MOST_BANDS:
        colour = COLOURS[number % len(COLOURS)]
        axes.fill_between(values.index, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15, linewidth=0)


def _cost_axis(axes: Axes, what: str) -> None:
    if what == costs.BYTES:  # which differ by orders of magnitude, as training does not
        log_scale(axes, "x")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: WRITTEN[what](value)))
    axes.set_xlabel(COST_AXIS[what])
