"""Data of charts as a page holds them, which writes each name once, with fewer rounds where there are many."""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from fedsim.results.report.charts.parts import Legend, Scale
from fedsim.results.report.drawing.style import short

MOST_ROWS = 5_000  # of one chart, so that a page with several of them stays within a few megabytes


def chart_of(rows: pd.DataFrame, **names: Sequence[str]) -> alt.Chart:
    """Return a chart of rows with the names of its numbers: those of the column ``l`` as ``l_name``."""
    named = {f"{field}_name": [texts[int(number)] for number in rows[field]] for field, texts in names.items()}
    return alt.Chart(values_of(rows.assign(**named)))


def values_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows as the data of a chart; Altair writes null for numbers that are not finite.

    As a table, which Altair neither copies nor compares with its schema for each chart that is made of it.
    """
    return rows.reset_index(drop=True)


def significant(values: Iterable[float], digits: int = 4) -> list[Any]:
    """Return a list for one cell of a chart's data: that many significant digits, and None for what is not finite."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]


def thinned(rounds: Iterable[int], most: int) -> list[int]:
    """Return at most that many rounds, evenly spread, with the first and the last of them."""
    ordered = sorted({int(each) for each in rounds})
    if len(ordered) <= max(most, 1):
        return ordered
    if most < 2:
        return ordered[-1:]
    places = np.linspace(0, len(ordered) - 1, most).round().astype(int)
    return [ordered[place] for place in dict.fromkeys(places.tolist())]


def distinct(names: Sequence[object], length: int = 24) -> list[str]:
    """Return names as a chart shows them: short, without control characters, and no two alike."""
    shown: list[str] = []
    for name in names:
        text = short(str(name), length)
        alike = sum(each == text or each.startswith(f"{text} #") for each in shown)
        shown.append(f"{text} #{alike + 1}" if alike else text)
    return shown


def axis_scale(*, log: bool, **options: Any) -> Scale:
    """Return a scale that fits its values, with or without 0."""
    return Scale(type="log", **options) if log else Scale(zero=False, **options)


def line_legend() -> Legend:
    """Return the legend of lines with bands, which shows the lines."""
    return Legend(title=None, labelLimit=320, symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=2)
