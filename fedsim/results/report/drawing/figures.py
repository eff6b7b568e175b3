"""Figures of a run, made to go straight into a paper: readable in print, in grey and to colour-blind readers."""

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fedsim.results.report.drawing.style import COLOURS, STYLE, WIDTH, draw_line, legend_outside, round_axis
from fedsim.results.result import Result


def curves(result: Result) -> Figure:
    """Draw accuracy and loss over the rounds of one run, with gaps where a value is missing."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
            means = result.mean_by_round("personalised", metric)
            own = result.of("personalised", metric).groupby("round")["value"]
            draw_line(axes, means, "personalised, clients' own test data (mean)", 0)
            low, high = (own.quantile(share).where(means.notna()) for share in (0.1, 0.9))
            axes.fill_between(low.index, low, high, color=COLOURS[0], alpha=0.15, label="10 % to 90 % of the clients")
            draw_line(axes, result.mean_by_round("global", metric), "global, clients' own test data", 1)
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


def _metric_axis(axes: Axes, metric: str) -> None:
    axes.set_ylabel("accuracy" if metric == "accuracy" else "cross-entropy (nats per example)")
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
