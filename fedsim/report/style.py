"""How all figures look, and how they are written."""

import io
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, told apart by all kinds of colour vision; line styles repeat the distinction in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 9.0  # inches
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
        marker=MARKERS[number % len(MARKERS)],
        markevery=max(1, len(series) // 8),
        markersize=4,
        label=label,
    )


def round_axis(axes: Axes) -> None:
    """Show whole rounds below a curve."""
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def short(name: str, length: int = SHORT_NAME) -> str:
    """Cut the middle out of a long name."""
    half = length // 2 - 1
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def legend_outside(figure: Figure, axes: Axes, *, above: bool = False) -> None:
    """Put one legend for all panels below or above them."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        [short(name, 2 * SHORT_NAME) for name in names],
        loc="outside upper center" if above else "outside lower center",
        ncols=min(len(names), 2 if len(names) > 3 else 3),
    )
