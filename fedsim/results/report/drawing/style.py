"""How all figures look, and how they are written."""

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FormatStrFormatter,
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from fedsim.shortening import printable
from fedsim.training.metrics import LOSS, label, metric_of

# Okabe and Ito's palette, which suits all kinds of colour vision; line styles repeat the distinction in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# As many as have no common divisor with the colours, so that 35 lines differ.
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 9.0  # inches
SHORT_NAME = 24  # to which longer names are cut
MANY_LINES = 8  # up to which a legend has letters of the usual size
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
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
    "axes.formatter.min_exponent": 2,  # ticks of logarithmic axes from 0.1 to 10 as plain numbers
    "svg.hashsalt": "fedsim",
    "pdf.fonttype": 42,
}


def save(figure: Figure, kind: str) -> bytes:
    """Return the figure as ``svg``, ``pdf`` or ``png``."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else {})
        figure.set_layout_engine("none")  # what is laid out stays so; in a further format it is drawn at once
    return buffer.getvalue()


def line_style(number: int) -> dict[str, Any]:
    """Return colour and line style of the n-th line."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}


def draw_line(axes: Axes, series: pd.Series, label: str, number: int) -> None:
    """Draw a series over its index as the n-th line."""
    axes.plot(
        series.index,
        series.to_numpy(),
        **line_style(number),
        marker=MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
        markevery=max(1, len(series) // 8),
        markersize=4,
        label=legend_name(label),
    )


class PowersOfTen(LogFormatterSciNotation):
    """Writes ticks of a logarithmic axis as plain text, such as 10⁻³, where formulas are not drawn."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the text of a tick."""
        text = re.sub(r"\$\\mathdefault\{(.*)\}\$", r"\1", super().__call__(x, pos)).replace(r"\times", "\u00d7")
        return re.sub(r"\^\{(.*?)\}", lambda power: power[1].translate(SUPERSCRIPTS), text)


def log_scale(axes: Axes, name: Literal["x", "y"]) -> None:
    """Let the axis ``x`` or ``y`` be logarithmic."""
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_formatter(PowersOfTen())
    axis.set_minor_formatter(PowersOfTen())


def log_values(axes: Axes) -> None:
    """Show values on a logarithmic scale within the present limits, with some numbers even if these are close."""
    log_scale(axes, "y")
    low, high = axes.get_ylim()
    if high > 100 * low:
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
    else:
        close = high < 5 * low
        axes.yaxis.set_major_locator(MaxNLocator(4) if close else LogLocator(subs=(1.0, 2.0, 5.0), numticks=15))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def round_axis(axes: Axes) -> None:
    """Show whole rounds below a curve."""
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend_name(name: str) -> str:
    """Return the name of a line; matplotlib leaves those out that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def short(name: str, length: int = SHORT_NAME) -> str:
    """Return a name as a figure shows it: without control characters, and without its middle if it is long."""
    name, half = printable(name), length // 2 - 1
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def legend_outside(figure: Figure, axes: Axes, *, above: bool = False) -> None:
    """Put one legend for all panels below or above them."""
    handles, names = axes.get_legend_handles_labels()
    shown = [short(name, 2 * SHORT_NAME) for name in names]
    figure.legend(
        handles,
        shown,
        loc="outside upper center" if above else "outside lower center",
        ncols=_legend_columns(shown),
        fontsize="small" if len(names) > MANY_LINES else None,
        handlelength=3.5 if len(names) > MANY_LINES else None,  # for long patterns of dashes
    )


def legend_height(names: Iterable[str]) -> float:
    """Return the inches that a legend of these lines takes below its figure."""
    shown = [short(name, 2 * SHORT_NAME) for name in names]
    return 0.2 * -(-len(shown) // _legend_columns(shown))


def _legend_columns(names: Sequence[str]) -> int:
    if len(names) <= MANY_LINES:
        return 2 if len(names) > 3 else max(1, len(names))
    for columns in (4, 3):
        parts = np.array_split([len(name) for name in names], columns)
        if sum(int(part.max()) + LINE_LETTERS for part in parts) <= LEGEND_LETTERS:
            return columns
    return 2


def metric_axis(axes: Axes, metric: str, *, whole: bool = False) -> None:
    """Label the vertical axis with a metric; a share is in percent, ``whole`` from 0 to 1."""
    axes.set_ylabel("loss (mean over the examples)" if metric == LOSS else label(metric))
    if metric_of(metric).unit == "share":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if whole:
            axes.set_ylim(0, 1.02)
    elif whole:
        axes.set_ylim(bottom=0)
