"""Data of charts in few letters: numbers for names, and fewer rounds where there are many."""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from fedsim.results.report.drawing.style import short

MOST_ROWS = 5_000  # of one chart, so that a page with several of them stays within a few megabytes


def chart_of(rows: pd.DataFrame, **names: Sequence[str]) -> alt.Chart:
    """Return a chart of rows that looks up the names of its numbers: those of the column ``l`` as ``l_name``."""
    chart = alt.Chart(values_of(rows))
    for field, texts in names.items():
        used = [{field: int(number), f"{field}_name": texts[int(number)]} for number in sorted(set(rows[field]))]
        data = alt.LookupData(data={"values": used}, key=field, fields=[f"{field}_name"])
        chart = chart.transform_lookup(lookup=field, from_=data)
    return chart


def values_of(rows: pd.DataFrame) -> dict[str, Any]:
    """Return rows as the data of a chart; numbers that are not finite are null.

    Not as an object of Altair, which would compare each row with the schema.
    """
    known = rows.replace([np.inf, -np.inf], np.nan)
    cells = known.astype(object).where(known.notna(), None).to_dict("records")
    return {"values": [{str(name): value for name, value in row.items()} for row in cells]}


def significant(values: Iterable[float], digits: int = 4) -> list[Any]:
    """Return a list for one cell of a chart's data: so many significant digits, and None for what is not finite."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]


def thinned(rounds: Sequence[int], most: int) -> list[int]:
    """Return at most so many rounds, evenly spread, with the first and the last of them."""
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
