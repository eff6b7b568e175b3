"""The figure of a partition: which client holds what."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.data.heterogeneity import Heterogeneity
from fedsim.results.files import write_whole
from fedsim.results.report.drawing import plotting
from fedsim.results.report.drawing.style import STYLE, WIDTH, log_scale, save, short
from fedsim.results.report.palette import COLOURS
from fedsim.shortening import printable

MOST_CLIENTS, MOST_CLASSES = 60, 100  # beyond which bubbles can no longer be told apart
BINS = 30
LARGEST_BUBBLE = 0.85  # of the distance between two neighbours


def partition(measured: Heterogeneity, title: str = "") -> plotting.Figure:
    """Draw each client's labels as bubbles under its size; of many clients or classes, how the clients are spread."""
    with plotting.rc_context(STYLE):
        figure = _bubbles(measured) if is_small(measured) else _histograms(measured)
        figure.suptitle(printable(title), fontsize=11)
        return figure


def is_small(measured: Heterogeneity) -> bool:
    """Tell whether the bubbles of all clients and classes can be told apart."""
    return len(measured) <= MOST_CLIENTS and len(measured.classes) <= MOST_CLASSES


def is_wide(values: np.ndarray) -> bool:
    """Tell whether values need a logarithmic axis."""
    return bool(values.max() > 50 * max(values.min(), 1))


def histogram_edges(values: np.ndarray) -> np.ndarray:
    """Return the edges of a histogram's bars: one narrow bar for equal values."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low - 0.05, low + 0.05])
    return np.geomspace(max(low, 1), high, BINS + 1) if is_wide(values) else np.linspace(low, high, BINS + 1)


def write_partition(measured: Heterogeneity, title: str, path: Path) -> Path:
    """Write the figure of a partition as PDF and as PNG; return the latter's path."""
    figure = partition(measured, title)
    for kind in ("pdf", "png"):
        write_whole(path.with_name(f"{path.name}.{kind}"), save(figure, kind))
    return path.with_name(f"{path.name}.png")


def _bubbles(measured: Heterogeneity) -> plotting.Figure:
    clients, classes = len(measured), len(measured.classes)
    height = np.clip(0.32 * classes, 1.6, 9.0)
    figure = plotting.Figure(figsize=(WIDTH, height + 1.9), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.1, height))
    above.bar(range(clients), measured.sizes, color=COLOURS[0], width=0.7 if clients > 3 else 0.3)
    above.set_ylabel("examples")
    above.grid(axis="x", visible=False)
    below.grid(axis="y", visible=False)
    counts = measured.counts
    owners = np.repeat(np.arange(clients), np.diff(counts.offsets))
    # Points of 1/72 inch; the area of a bubble is in proportion to its count.
    distance = 72 * min((WIDTH - 1.8) / max(clients, 2), height / classes)
    area = (LARGEST_BUBBLE * distance) ** 2 * counts.counts / counts.counts.max(initial=1)
    below.scatter(owners, counts.labels, s=area, color=COLOURS[0], linewidths=0)
    below.set(xlabel="client", ylabel="class", xlim=(-0.7, clients - 0.3), ylim=(classes - 0.4, -0.6))
    below.set_yticks(range(classes), [short(name) for name in measured.classes], fontsize=10 if classes <= 26 else 6)
    below.xaxis.set_major_locator(plotting.MaxNLocator(integer=True, nbins=25, min_n_ticks=1))
    below.set_title(f"largest bubble: {counts.counts.max(initial=0):,} of one class", fontsize=9, loc="right")
    return figure


def _histograms(measured: Heterogeneity) -> plotting.Figure:
    figure = plotting.Figure(figsize=(WIDTH, 4.6), layout="constrained")
    *panels, empty = figure.subplots(2, 3).flat
    for axes, (name, values) in zip(panels, measured.by_client.items(), strict=True):
        _histogram(axes, name, values[~np.isnan(values)])
    empty.set_axis_off()
    return figure


def _histogram(axes: plotting.Axes, name: str, values: np.ndarray) -> None:
    axes.set(xlabel=name, ylabel="clients")
    if not len(values):
        axes.set_title("undefined", fontsize=9, loc="right")
        return
    axes.yaxis.set_major_locator(plotting.MaxNLocator(integer=True, nbins=5))
    edges = histogram_edges(values)
    axes.hist(values, bins=edges.tolist(), color=COLOURS[0])
    if len(edges) == 2:
        axes.set(xlim=(values[0] - 1, values[0] + 1), xticks=[values[0]])
    elif is_wide(values):
        log_scale(axes, "x")
    else:
        axes.xaxis.set_major_locator(plotting.MaxNLocator(nbins=6))
    axes.axvline(values.mean(), color=COLOURS[1], linestyle="--", linewidth=1.2)
    axes.set_title(f"mean {values.mean():.4g}", fontsize=9, loc="right")
