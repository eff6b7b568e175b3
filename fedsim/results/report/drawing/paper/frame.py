"""The size, the letters and the files of a paper's figures."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedsim.results.report.drawing.style import STYLE, folded

WIDTHS = {"column": 3.3, "page": 7.0}  # inches
LETTERS = 8  # points
KINDS = ("pdf", "png", "svg")
LEGEND_LETTERS = (34, 22, 14)  # in a line of a name, the fewer the wider its letters are
GAP = 0.06  # inches below the panels
PAPER: Any = STYLE | {
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "legend.fontsize", "figure.titlesize"), LETTERS),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), LETTERS),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width", "grid.linewidth"), 0.6),
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
    "ps.fonttype": 42,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
}


@dataclass(frozen=True)
class Frame:
    """The width of a figure, and how many panels are next to each other.

    Parameters
    ----------
    width
        Width in inches.
    most_across
        Largest number of panels next to each other.
    """

    width: float
    most_across: int

    def grid(self, count: int) -> tuple[int, int]:
        """Return how many panels are below and next to each other, in rows that are as full as can be."""
        down = -(-count // self.most_across)
        return down, -(-count // down)


def frame_of(width: str) -> Frame:
    """Return the frame of a ``column`` or a ``page``."""
    return Frame(WIDTHS[width], 1 if width == "column" else 3)


def paper_file(figure: Figure, kind: str) -> bytes:
    """Return the figure as ``pdf``, ``png`` or ``svg``, exactly as large as it was made."""
    buffer = io.BytesIO()
    with rc_context(PAPER):
        figure.savefig(buffer, format=kind, dpi=300, metadata={"CreationDate": None} if kind == "pdf" else {})
    return buffer.getvalue()


def legend_below(figure: Figure, panels: Iterable[Axes]) -> None:
    """Put a legend of all panels below them, in as many columns as fit, and make the figure higher by it."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches()
    tries = [(columns, LEGEND_LETTERS[0]) for columns in range(len(handles), 0, -1)]
    for columns, letters in [*tries, *((1, each) for each in LEGEND_LETTERS[1:])]:
        names = [folded(name, letters) for name in handles]
        legend = figure.legend(handles.values(), names, loc="outside lower center", ncols=columns)
        box = legend.get_window_extent(renderer)
        if box.width <= 0.98 * figure.bbox.width or letters == LEGEND_LETTERS[-1]:
            break
        legend.remove()
    figure.set_size_inches(width, height + box.height / figure.dpi + GAP)


def hide_rest(every: Sequence[Axes], count: int) -> Sequence[Axes]:
    """Hide the places of a grid that have no panel, and return the others."""
    for axes in every[count:]:
        axes.set_visible(False)
    return every[:count]
