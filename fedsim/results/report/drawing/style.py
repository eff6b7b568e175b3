"""How all figures look, and how they are written."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from fedsim.results.report.drawing import plotting
from fedsim.results.report.palette import COLOURS, DASHES, MARKERS, Look
from fedsim.shortening import printable
from fedsim.training.metrics import LOSS, label, metric_of

WIDTH = 9.0  # inches
SHORT_NAME = 24  # to which longer names are cut
MOST_LINES, LEGEND_LINE = 3, 40  # lines of a name, and letters of its lines in a legend
MANY_LINES = 8  # up to which a legend has letters of the usual size
LEGEND_LETTERS, LINE_LETTERS = 135, 11  # small letters that fit below a figure, and as how many a line counts
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    # Names of classes, layers, files and runs are in all texts, and none is a formula.
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.useoffset": False,  # a tick is its value
    "axes.formatter.min_exponent": 2,  # ticks of logarithmic axes from 0.1 to 10 as plain numbers
    "svg.hashsalt": "fedsim",
    "pdf.fonttype": 42,
}


def save(figure: plotting.Figure, kind: str) -> bytes:
    """Return the figure as ``svg``, ``pdf`` or ``png``."""
    buffer = io.BytesIO()
    with plotting.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else {})
        figure.set_layout_engine("none")  # what is laid out stays so; in a further format it is drawn at once
    return buffer.getvalue()


def line_style(number: int) -> dict[str, Any]:
    """Return colour and dashes of the n-th curve of one run; dashes repeat the distinction in grey."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": _dashes(DASHES[number % len(DASHES)])}


def look_style(look: Look) -> dict[str, Any]:
    """Return colour and dashes of a strategy's lines."""
    return {"color": look.colour, "linestyle": _dashes(look.dash)}


def _dashes(lengths: Sequence[float]) -> Any:
    return (0, tuple(lengths)) if lengths else "-"


def draw_line(axes: plotting.Axes, series: pd.Series, label: str, look: int | Look, *, size: float = 4) -> None:
    """Draw a series over its index, as the n-th curve of a run or as a strategy looks."""
    marker = look.marker if isinstance(look, Look) else MARKERS[look % len(MARKERS)]
    axes.plot(
        series.index,
        series.to_numpy(),
        **(look_style(look) if isinstance(look, Look) else line_style(look)),
        marker=marker,
        markevery=max(1, len(series) // 8),
        markersize=size,
        label=legend_name(label),
    )


def percents(axis: plotting.Axis, *, most: int | None = None) -> None:
    """Show shares on an axis in percent, at round numbers, which are whole unless the axis is short.

    Parameters
    ----------
    most
        Largest number of ticks.
    """
    axis.set_major_locator(plotting.MaxNLocator("auto" if most is None else most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(plotting.Percents())


def log_scale(axes: plotting.Axes, name: Literal["x", "y"]) -> None:
    """Let the axis ``x`` or ``y`` be logarithmic."""
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_formatter(plotting.PowersOfTen())
    axis.set_minor_formatter(plotting.PowersOfTen())


def log_values(axes: plotting.Axes) -> None:
    """Show values on a logarithmic scale within the present limits, with some numbers even if these are close."""
    log_scale(axes, "y")
    low, high = axes.get_ylim()
    if high > 100 * low:
        axes.yaxis.set_major_locator(plotting.LogLocator(numticks=5))
    else:
        close = high < 5 * low
        axes.yaxis.set_major_locator(
            plotting.MaxNLocator(4) if close else plotting.LogLocator(subs=(1.0, 2.0, 5.0), numticks=15)
        )
        axes.yaxis.set_major_formatter(plotting.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(plotting.NullFormatter())


def round_axis(axes: plotting.Axes) -> None:
    """Show whole rounds below a curve."""
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(plotting.MaxNLocator(integer=True, min_n_ticks=1))


def legend_name(name: str) -> str:
    """Return the name of a line; matplotlib leaves those out that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def short(name: str, length: int = SHORT_NAME) -> str:
    """Return a name as a figure shows it: without control characters, and without its middle if it is long."""
    name, half = printable(name), length // 2 - 1
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def folded(name: str, length: int = 2 * SHORT_NAME, most: int = MOST_LINES) -> str:
    """Return a name in lines of some letters; only one of more than ``most`` lines is cut, at its end."""
    lines = textwrap.wrap(printable(name), length, break_on_hyphens=False) or [""]
    lines = lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][: length - 1] + "…"]
    return "\n".join(f" {line}" if line.startswith("_") else line for line in lines)


def legend_outside(
    figure: plotting.Figure, axes: plotting.Axes | Sequence[plotting.Axes], *, above: bool = False
) -> None:
    """Put one legend for all panels below or above them, with each name once."""
    handles: dict[str, Any] = {}
    for each in [axes] if isinstance(axes, plotting.Axes) else axes:
        for handle, name in zip(*each.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    shown = [folded(name, LEGEND_LINE) for name in handles]
    figure.legend(
        handles.values(),
        shown,
        loc="outside upper center" if above else "outside lower center",
        ncols=_legend_columns(shown),
        fontsize="small" if len(shown) > MANY_LINES else None,
        handlelength=3.5 if len(shown) > MANY_LINES else None,  # for long patterns of dashes
    )


def legend_height(names: Iterable[str]) -> float:
    """Return the inches that a legend of these lines takes below its figure."""
    shown = [folded(name, LEGEND_LINE) for name in names]
    lines = -(-sum(name.count("\n") + 1 for name in shown) // _legend_columns(shown))
    return 0.2 * lines


def _legend_columns(names: Sequence[str]) -> int:
    lengths = [max(map(len, name.split("\n"))) for name in names]
    if len(names) <= MANY_LINES:
        return min(len(names), 4) if sum(lengths) < 60 else 2 if len(names) > 3 else max(1, len(names))
    for columns in (4, 3):
        parts = np.array_split(lengths, columns)
        if sum(int(part.max()) + LINE_LETTERS for part in parts) <= LEGEND_LETTERS:
            return columns
    return 2


def metric_axis(axes: plotting.Axes, metric: str, *, whole: bool = False) -> None:
    """Label the vertical axis with a metric; a share is in percent, ``whole`` from 0 to 1."""
    axes.set_ylabel(metric_label(metric))
    if metric_of(metric).unit == "share":
        percents(axes.yaxis)
        if whole:
            axes.set_ylim(0, 1.02)
    elif whole:
        axes.set_ylim(bottom=0)


def metric_label(metric: str) -> str:
    """Return a metric's name on an axis, with the unit of its ticks."""
    if metric == LOSS:
        return "loss (mean over the examples)"
    return f"{label(metric)} (%)" if metric_of(metric).unit == "share" else label(metric)
