"""Figures of a run, made to go straight into a paper: readable in print, in grey and to colour-blind readers."""

from __future__ import annotations

import numpy as np

from fedsim.results.report.drawing import plotting
from fedsim.results.report.drawing.style import (
    STYLE,
    WIDTH,
    draw_line,
    legend_outside,
    metric_axis,
    round_axis,
)
from fedsim.results.report.palette import COLOURS
from fedsim.results.result import Result
from fedsim.training.metrics import label


def curves(result: Result) -> plotting.Figure:
    """Draw the main metric and the loss over the rounds of one run, with gaps where a value is missing."""
    with plotting.rc_context(STYLE):
        figure = plotting.Figure(figsize=(WIDTH, 3.6), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 2), (result.main, "loss"), strict=True):
            means = result.mean_by_round("personalised", metric)
            own = result.of("personalised", metric).groupby("round")["value"]
            draw_line(axes, means, "personalised, clients' own test data (mean)", 0)
            low, high = (own.quantile(share).where(means.notna()) for share in (0.1, 0.9))
            axes.fill_between(low.index, low, high, color=COLOURS[0], alpha=0.15, label="10 % to 90 % of the clients")
            draw_line(axes, result.mean_by_round("global", metric), "global, clients' own test data", 1)
            draw_line(axes, result.on_server("global", metric), "global, server's test data", 2)
            round_axis(axes)
            metric_axis(axes, metric)
            axes.set_title(label(metric, capital=True))
        legend_outside(figure, axes)
        return figure


def clients(result: Result) -> plotting.Figure:
    """Draw the personalised and the global model's main metric on each client's own test data, sorted."""
    with plotting.rc_context(STYLE):
        figure = plotting.Figure(figsize=(WIDTH, 3.4), layout="constrained")
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
        axes.set_xlabel(f"client, sorted by its personalised {label(result.main)}")
        metric_axis(axes, result.main, whole=True)
        legend_outside(figure, axes)
        return figure
