"""Figures of runs, made to go straight into a paper: readable in print, in grey and to colour-blind readers."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from fedsim.report.results import Result
from fedsim.report.style import (
    COLOURS,
    SHORT_NAME,
    STYLE,
    WIDTH,
    draw_line,
    legend_outside,
    line_style,
    round_axis,
    short,
)


def curves(result: Result) -> Figure:
    """Draw accuracy and loss over the rounds of one run."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
            own = result.of("personalised", metric).groupby("round")["value"]
            draw_line(axes, own.mean(), "personalised, clients' own test data (mean)", 0)
            low, high = own.quantile(0.1), own.quantile(0.9)
            axes.fill_between(low.index, low, high, color=COLOURS[0], alpha=0.15, label="10 % to 90 % of the clients")
            draw_line(
                axes, result.of("global", metric).groupby("round")["value"].mean(), "global, clients' own test data", 1
            )
            draw_line(axes, result.on_server("global", metric), "global, server's test data", 2)
            round_axis(axes)
            _metric_axis(axes, metric)
            axes.set_title(metric.capitalize())
        legend_outside(figure, axes)
        return figure


def clients(result: Result) -> Figure:
    """Draw the personalised and the global model's accuracy on each client's own test data, sorted."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        personalised = result.by_client("personalised").sort_values()
        positions = np.arange(len(personalised))
        axes.bar(positions, personalised, color=COLOURS[0], alpha=0.75, label="personalised model")
        globals_ = result.by_client("global").reindex(personalised.index)
        axes.plot(positions, globals_, "D", color=COLOURS[1], markersize=5, label="global model")
        axes.axhline(personalised.mean(), color=COLOURS[0], linestyle="--", linewidth=1, label="mean, personalised")
        if len(positions) <= 50:
            axes.set_xticks(positions, [str(int(client)) for client in personalised.index])
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("client, sorted by its personalised accuracy")
        axes.set_ylim(0, 1.02)
        _metric_axis(axes, "accuracy")
        legend_outside(figure, axes)
        return figure


def compared_curves(results: Mapping[str, Result]) -> Figure:
    """Draw personalised and global accuracy over rounds, one line per run."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        panels = figure.subplots(1, 2)
        for number, (name, result) in enumerate(results.items()):
            draw_line(panels[0], result.of("personalised").groupby("round")["value"].mean(), name, number)
            draw_line(panels[1], result.on_server("global"), name, number)
        titles = ("Personalised models, clients' own test data (mean)", "Global model, server's test data")
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(title)
            round_axis(axes)
            _metric_axis(axes, "accuracy")
        legend_outside(figure, panels[0])
        return figure


def compared_traffic(results: Mapping[str, Result]) -> Figure:
    """Draw personalised accuracy against the bytes sent so far; a run that sends nothing is a level line."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        for number, (name, result) in enumerate(results.items()):
            accuracy = result.of("personalised").groupby("round")["value"].mean()
            if result.bytes_total == 0:
                axes.axhline(accuracy.iloc[-1], **line_style(number), label=f"{name}, sends nothing")
                continue
            draw_line(axes, accuracy.set_axis(_cumulative_bytes(result).loc[accuracy.index]), name, number)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
        axes.set_xlabel("traffic up and down so far, all clients")
        _metric_axis(axes, "accuracy")
        axes.set_title("Personalised models, clients' own test data (mean)")
        legend_outside(figure, axes)
        return figure


def compared_clients(results: Mapping[str, Result]) -> Figure:
    """Draw the distribution of personalised accuracy over the clients: a point each, with quartiles."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.4 + 0.5 * len(results)), layout="constrained")
        axes = figure.subplots()
        values = [result.by_client("personalised").to_numpy() for result in results.values()]
        axes.boxplot(
            values,
            orientation="horizontal",
            widths=0.5,
            showfliers=False,
            medianprops={"color": "black", "linewidth": 2},
        )
        for number, points in enumerate(values):
            # Spread over the height in the order of their values, so that equal points do not hide each other.
            offsets = np.linspace(-0.18, 0.18, len(points)) if len(points) > 1 else np.zeros(1)
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(np.sort(points), number + 1 + offsets, "o", color=colour, alpha=0.7, markersize=5)
        axes.set_yticks(range(1, len(results) + 1), [short(name, 2 * SHORT_NAME) for name in results])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("accuracy of the personalised model on the client's own test data")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        return figure


def format_bytes(count: float) -> str:
    """Return a number of bytes with three digits in the decimal unit that suits it, such as ``12.3 MB``."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:g} bytes" if count else "0"


def _cumulative_bytes(result: Result) -> pd.Series:
    rounds = range(1, result.evaluated + 1)
    per_round = result.communication.groupby("round")[["up", "down"]].sum().sum(axis=1)
    return per_round.reindex(rounds, fill_value=0).cumsum()


def _metric_axis(axes: Axes, metric: str) -> None:
    axes.set_ylabel("accuracy" if metric == "accuracy" else "cross-entropy (nats per example)")
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
