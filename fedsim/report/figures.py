"""Figures of runs, made to go straight into a paper: readable in print, in grey and to colour-blind readers."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from fedsim.report.results import Result

# Okabe and Ito's palette, told apart by all kinds of colour vision; line styles repeat the distinction in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 9.0  # inches
ANNOTATED_CELLS = 400
LONG_NAME = 14  # a layer's name beyond which heat maps stand below each other
SHORT_NAME = 24  # to which longer names are cut
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "svg.hashsalt": "fedsim",
    "pdf.fonttype": 42,
}


def save(figure: Figure, kind: str) -> bytes:
    """Return the figure as ``svg``, ``pdf`` or ``png``."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(
            buffer, format=kind, dpi=160, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else {}
        )
    return buffer.getvalue()


def curves(result: Result) -> Figure:
    """Draw accuracy and loss over the rounds of one run."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
            own = result.of("personalised", metric).groupby("round")["value"]
            _line(axes, own.mean(), "personalised, clients' own test data (mean)", 0)
            low, high = own.quantile(0.1), own.quantile(0.9)
            axes.fill_between(low.index, low, high, color=COLOURS[0], alpha=0.15, label="10 % to 90 % of the clients")
            _line(
                axes, result.of("global", metric).groupby("round")["value"].mean(), "global, clients' own test data", 1
            )
            _line(axes, result.on_server("global", metric), "global, server's test data", 2)
            _round_axis(axes)
            _metric_axis(axes, metric)
            axes.set_title(metric.capitalize())
        _legend_below(figure, axes)
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
        _legend_below(figure, axes)
        return figure


def barrier_table(result: Result, column: str, t: float = 1.0) -> pd.DataFrame:
    """Return a mean barrier by group (full first) and round.

    Parameters
    ----------
    t
        1 for the clients against their average, 1/2 for pairs of clients halfway.
    """
    rows = result.barriers[(result.barriers["t"] == t) & ((result.barriers["other"] == -1) == (t == 1))]
    table = rows.pivot_table(index="group", columns="round", values=column, aggfunc="mean", sort=False, dropna=False)
    return table.loc[sorted(table.index, key=lambda group: group != "full")]


def barriers(result: Result, metric: str) -> Figure:
    """Draw the layer-by-round heat maps of a run: its first row is the full model.

    Parameters
    ----------
    metric
        ``loss`` in nats or ``error`` in percentage points.
    """
    tables = {
        f"average, minus the clients' mean {metric}": barrier_table(result, f"{metric}_mean_ends"),
        f"average, minus the client's own {metric}": barrier_table(result, f"{metric}_own_base"),
        f"pairs at t = 1/2, minus their mean {metric}": barrier_table(result, f"{metric}_mean_ends", 0.5),
        "pairs at t = 1/2, minus the path's ends": barrier_table(result, f"{metric}_swap_ends", 0.5),
    }
    return _heat_maps({title: table for title, table in tables.items() if len(table)}, metric)


def compared_barriers(results: Mapping[str, Result], metric: str) -> Figure:
    """Draw the heat maps of several runs beside each other, on one colour scale."""
    return _heat_maps({name: barrier_table(result, f"{metric}_mean_ends") for name, result in results.items()}, metric)


def _heat_maps(tables: Mapping[str, pd.DataFrame], metric: str) -> Figure:
    factor, unit = (1.0, "nats") if metric == "loss" else (100.0, "percentage points")
    longest = max(len(str(group)) for table in tables.values() for group in table.index)
    columns = 1 if longest > LONG_NAME else min(2, len(tables))
    rows = -(-len(tables) // columns)
    layers = max(len(table) for table in tables.values())
    values = np.abs(np.concatenate([table.to_numpy().ravel() for table in tables.values()]))
    limit = factor * float(values[np.isfinite(values)].max(initial=0.0)) or 1.0
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(WIDTH, max(2.4, rows * (1.2 + 0.28 * layers))), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, table) in zip(panels, tables.items(), strict=False):
            image = axes.imshow(
                table.to_numpy() * factor,
                cmap="RdBu_r",
                norm=TwoSlopeNorm(0.0, -limit, limit),
                aspect="auto",
                interpolation="nearest",
            )
            _annotate(axes, table.to_numpy() * factor, limit)
            axes.set_yticks(range(len(table)), [_short(str(group)) for group in table.index])
            step = max(1, len(table.columns) // 12)
            axes.set_xticks(range(0, len(table.columns), step), table.columns[::step])
            axes.set_xlabel("round")
            axes.set_title(_short(title, 2 * SHORT_NAME))
            if "full" in table.index:
                axes.axhline(0.5, color="black", linewidth=1)
        for axes in panels[len(tables) :]:
            axes.set_visible(False)
        figure.colorbar(image, ax=panels.tolist(), label=f"{metric} barrier\n({unit})", pad=0.01, aspect=30)
        return figure


def _annotate(axes: Axes, values: np.ndarray, limit: float) -> None:
    rows, columns = values.shape
    if columns > 12 or rows > 30:
        return
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.6 * limit else "black"
        if not np.isfinite(value):
            continue
        decimals = 0 if limit >= 10 else 2 if limit >= 0.1 else 4
        text = f"{round(value, decimals) + 0.0:.{decimals}f}"  # adding zero takes the minus from a zero
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def compared_curves(results: Mapping[str, Result]) -> Figure:
    """Draw personalised and global accuracy over rounds, one line per run."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        panels = figure.subplots(1, 2)
        for number, (name, result) in enumerate(results.items()):
            _line(panels[0], result.of("personalised").groupby("round")["value"].mean(), name, number)
            _line(panels[1], result.on_server("global"), name, number)
        titles = ("Personalised models, clients' own test data (mean)", "Global model, server's test data")
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(title)
            _round_axis(axes)
            _metric_axis(axes, "accuracy")
        _legend_below(figure, panels[0])
        return figure


def compared_traffic(results: Mapping[str, Result]) -> Figure:
    """Draw personalised accuracy against the bytes sent so far; a run that sends nothing is a level line."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        for number, (name, result) in enumerate(results.items()):
            accuracy = result.of("personalised").groupby("round")["value"].mean()
            if result.bytes_total == 0:
                axes.axhline(accuracy.iloc[-1], **_style(number), label=f"{name}, sends nothing")
                continue
            _line(axes, accuracy.set_axis(_cumulative_bytes(result).loc[accuracy.index]), name, number)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
        axes.set_xlabel("traffic up and down so far, all clients")
        _metric_axis(axes, "accuracy")
        axes.set_title("Personalised models, clients' own test data (mean)")
        _legend_below(figure, axes)
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
        axes.set_yticks(range(1, len(results) + 1), [_short(name, 2 * SHORT_NAME) for name in results])
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


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}


def _line(axes: Axes, series: pd.Series, label: str, number: int) -> None:
    axes.plot(
        series.index,
        series.to_numpy(),
        **_style(number),
        marker=MARKERS[number % len(MARKERS)],
        markevery=max(1, len(series) // 8),
        markersize=4,
        label=label,
    )


def _round_axis(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _metric_axis(axes: Axes, metric: str) -> None:
    axes.set_ylabel("accuracy" if metric == "accuracy" else "cross-entropy (nats per example)")
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _short(name: str, length: int = SHORT_NAME) -> str:
    """Cut the middle out of a long name."""
    half = length // 2 - 1
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def _legend_below(figure: Figure, axes: Axes) -> Any:
    handles, names = axes.get_legend_handles_labels()
    return figure.legend(
        handles,
        [_short(name, 2 * SHORT_NAME) for name in names],
        loc="outside lower center",
        ncols=min(len(names), 2 if len(names) > 3 else 3),
    )
