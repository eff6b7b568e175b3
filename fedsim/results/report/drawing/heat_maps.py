"""Grids of heat maps on one colour scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedsim.results.report.drawing import plotting
from fedsim.results.report.drawing.style import STYLE, WIDTH, short
from fedsim.results.report.palette import ALIGNED, AMOUNT, DIVERGING, NOT_MEASURED

ROW = 0.2  # inches
NUMBER, DIGITS = 0.31, 6.5  # inches that a number in a cell takes, and its points
LETTER, LINE = 0.075, 0.15  # inches of a name's letter, and of its height
MOST_NUMBERS, MOST_COLUMNS, MOST_NAMES = 500, 60, 14


@dataclass(frozen=True)
class Quantity:
    """What the cells of a heat map show.

    Parameters
    ----------
    factor
        Factor from the table's unit to the one shown.
    signed
        Whether 0 is the middle of the colour scale, and red what hurts; otherwise it is the lower end.
    aligned
        Whether it is how well models agree, from 0 to 1, which has a colour scale of its own; below 0 they disagree.
    """

    label: str
    factor: float = 1.0
    signed: bool = True
    aligned: bool = False

    @property
    def scale(self) -> Sequence[str]:
        """The colours."""
        return ALIGNED if self.aligned else DIVERGING if self.signed else AMOUNT


@dataclass(frozen=True)
class HeatMaps:
    """Tables by their titles, on one colour scale: drawn for a file, and a chart on a page.

    Parameters
    ----------
    tables
        Tables with any index and columns; those in a row of panels should share their index.
    across
        Number of panels in a row.
    columns, rows
        Labels of the columns and rows.
    inches, points
        Width of the figure, and size of its letters.
    """

    tables: Mapping[str, pd.DataFrame]
    quantity: Quantity
    across: int = 1
    columns: str = "round"
    rows: str = ""
    inches: float = WIDTH
    points: float = 9

    def figure(self) -> plotting.Figure:
        """Draw the tables.

        Wide cells show their numbers; otherwise negative ones are marked by a minus, which distinguishes them from
        positive ones in print without colours. Cells without a value are grey. A row ``full`` is set apart from the
        others.
        """
        across, tables, quantity = min(self.across, len(self.tables)), self.tables, self.quantity
        lines = [list(tables.items())[start : start + across] for start in range(0, len(tables), across)]
        is_last = _last_of_columns(lines)
        heights = [
            (0.9 if any(last) else 0.7) + ROW * max(len(table) for _, table in line)
            for line, last in zip(lines, is_last, strict=True)
        ]
        low, high, is_clipped = domain_of(tables.values(), quantity)
        norm = plotting.Normalize(low, high)
        names = [short(str(name)) for table in tables.values() for name in table.index]
        width = (self.inches - 1.0 - LETTER * max(map(len, names), default=0)) / across
        with_numbers = sum(table.size for table in tables.values()) <= MOST_NUMBERS
        digits = DIGITS if self.points > DIGITS + 2 else self.points
        letters = dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), self.points)
        with plotting.rc_context(STYLE | letters | {"axes.grid": False, "axes.facecolor": NOT_MEASURED}):
            figure = plotting.Figure(figsize=(self.inches, max(2.2, sum(heights))), layout="constrained")
            panels = figure.subplots(len(lines), across, squeeze=False, height_ratios=heights)
            for line, row_of_axes, last in zip(lines, panels, is_last, strict=True):
                for place, axes in enumerate(row_of_axes):
                    axes.set_visible(place < len(line))
                for place, (title, table) in enumerate(line):
                    axes = row_of_axes[place]
                    values = table.to_numpy(dtype=float) * quantity.factor
                    _draw_cells(axes, values, norm, quantity.scale, width, digits if with_numbers else None)
                    _name_rows(axes, table, named=place == 0 or not table.index.equals(line[0][1].index))
                    _name_columns(axes, table, width / max(1, values.shape[1]))
                    axes.set(xlabel=self.columns if last[place] else "", ylabel=self.rows if place == 0 else "")
                    axes.set_title("\n".join(short(part, int(width / 0.065)) for part in title.splitlines()))
            ends = ("both" if quantity.signed else "max") if is_clipped else "neither"
            image = panels[0, 0].images[0]
            figure.colorbar(image, ax=panels.ravel().tolist(), label=quantity.label, pad=0.01, aspect=30, extend=ends)
            return figure


def _last_of_columns(lines: Sequence[Sequence[tuple[str, pd.DataFrame]]]) -> list[list[bool]]:
    """Return which panels name their columns: those with none below them, or all where the columns differ."""
    alike = all(table.columns.equals(lines[0][0][1].columns) for line in lines for _, table in line)
    below = [len(line) for line in lines[1:]] + [0]
    return [
        [not alike or place >= count for place in range(len(line))] for line, count in zip(lines, below, strict=True)
    ]


def domain_of(tables: Iterable[pd.DataFrame], quantity: Quantity) -> tuple[float, float, bool]:
    """Return the values at the ends of the colours, as they are shown, and whether some cells are beyond them."""
    values = [quantity.factor * table.to_numpy(dtype=float) for table in tables]
    if quantity.aligned:
        every = np.concatenate([each.ravel() for each in values])
        every = every[np.isfinite(every)]
        return float(every.min(initial=0.0)), float(every.max(initial=1.0)), False
    limit, is_clipped = colour_limit(values)
    return -limit if quantity.signed else 0.0, limit, is_clipped


def colour_limit(tables: Sequence[np.ndarray]) -> tuple[float, bool]:
    """Return the absolute value at which colours end, and whether some cells are beyond it.

    That is the largest value, unless it is more than twice as large as all but the largest hundredth of the cells, at
    least one: a single outlier must not hide the differences between all others.
    """
    values = np.abs(np.concatenate([table.ravel() for table in tables]))
    values = np.sort(values[np.isfinite(values)])
    if not len(values) or values[-1] == 0:
        return 1.0, False
    rest = values[: -max(1, len(values) // 100)]
    if len(values) >= 10 and 0 < rest[-1] < values[-1] / 2:
        return float(rest[-1]), True
    return float(values[-1]), False


def _draw_cells(
    axes: plotting.Axes,
    values: np.ndarray,
    norm: plotting.Normalize,
    scale: Sequence[str],
    width: float,
    digits: float | None,
) -> None:
    """Draw coloured cells in a panel of some inches, with numbers of some points, or minuses, where these fit."""
    cmap, limit, columns = colour_map(scale), float(norm.vmax or 1.0), values.shape[1]
    axes.imshow(values, cmap=cmap, norm=norm, aspect="auto", interpolation="nearest")
    letters = inks(cmap(norm(values)))
    if digits and width / max(1, columns) >= NUMBER * digits / DIGITS:
        _write_numbers(axes, values, letters, limit, digits)
    elif norm.vmin and columns <= MOST_COLUMNS:
        _mark_negative(axes, values, letters, limit, width / columns)


def colour_map(scale: Sequence[str]) -> plotting.LinearSegmentedColormap:
    """Return a scale of colours, linear between its stops, for matplotlib."""
    return plotting.LinearSegmentedColormap.from_list("scale", list(scale))


def _write_numbers(axes: plotting.Axes, values: np.ndarray, letters: np.ndarray, limit: float, points: float) -> None:
    decimals = 1 if limit >= 10 else 2 if limit >= 0.1 else 4 if limit < 0.01 else 3
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = f"{round(value, decimals) + 0.0:.{decimals}f}"  # adding zero takes the minus from a zero
            axes.text(column, row, text, ha="center", va="center", fontsize=points, color=letters[row, column])


def _mark_negative(axes: plotting.Axes, values: np.ndarray, letters: np.ndarray, limit: float, cell: float) -> None:
    """Draw a minus into cells that are clearly negative, as wide as the cells."""
    row, column = np.nonzero(np.nan_to_num(values) < -0.05 * limit)
    size = min(30.0, (40 * cell) ** 2)
    axes.scatter(column, row, marker="_", s=size, color=list(letters[row, column]), linewidths=0.7)


def inks(colours: np.ndarray) -> np.ndarray:
    """Return the text colour that is legible on each colour."""
    return np.where(colours[..., :3] @ [0.299, 0.587, 0.114] < 0.55, "white", "black")


def _name_rows(axes: plotting.Axes, table: pd.DataFrame, *, named: bool) -> None:
    axes.set_yticks(range(len(table)) if named else [])
    if named:
        axes.set_yticklabels([short(str(name)) for name in table.index], fontsize=8)
    if "full" in table.index:
        axes.axhline(list(table.index).index("full") + 0.5, color="black", linewidth=1)


def _name_columns(axes: plotting.Axes, table: pd.DataFrame, cell: float) -> None:
    """Name every column, or each n-th, upright where the names are too long."""
    names = [short(str(name)) for name in table.columns]
    step = -(-len(names) // MOST_NAMES)
    upright = LETTER * max(map(len, names)) > step * cell
    step = max(1, int(LINE / cell)) if upright else step
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90 if upright else 0)
