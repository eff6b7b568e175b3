"""Charts as JSON in a page: specifications without data, and each set of data once, by columns."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
from altair.vegalite.v6.api import ChartType

from fedsim.shortening import printable

DIGITS = 4  # significant ones of numbers with a fraction


def embedded(charts: Mapping[str, ChartType]) -> dict[str, Any]:
    """Return ``charts`` by their names as Vega-Lite without configuration, and ``datasets`` by their hashes."""
    specifications: dict[str, Any] = {}
    datasets: dict[str, Any] = {}
    # The page has a theme of its own, and what it holds is bounded by those who make the charts.
    with alt.theme.enable("none"), alt.data_transformers.enable("default", max_rows=None, consolidate_datasets=True):
        for name, chart in charts.items():
            specification = chart.to_dict(validate=False)
            for key in ("$schema", "config"):
                specification.pop(key, None)
            datasets |= {key: by_columns(rows) for key, rows in specification.pop("datasets", {}).items()}
            specifications[name] = specification
    return {"charts": specifications, "datasets": datasets}


def as_printable(value: Any) -> Any:
    """Return JSON with the control characters of all its texts, and of names in it, as escapes; ends of lines stay."""
    match value:
        case str():
            return printable(value, lines=True)
        case Mapping():
            return {as_printable(key): as_printable(each) for key, each in value.items()}
        case list() | tuple():
            return [as_printable(each) for each in value]
    return value


def by_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rows as columns: their ``names``, and ``values`` of each, texts as the places where they first appear."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {"names": names, "values": [_column([row.get(name) for row in rows]) for name in names]}


def _column(values: Sequence[Any]) -> list[Any] | dict[str, list[Any]]:
    if any(isinstance(value, str) for value in values) and all(isinstance(value, str | None) for value in values):
        places = {text: place for place, text in enumerate(dict.fromkeys(values))}
        return {"texts": list(places), "places": [places[value] for value in values]}
    return [_rounded(value) for value in values]


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.{DIGITS}g}")
