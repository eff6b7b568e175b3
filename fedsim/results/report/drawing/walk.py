"""The figure of a walk between two models, next to the straight line."""

import pandas as pd

from fedsim.results.measured import scale_of
from fedsim.results.report.comparing.tables import Table
from fedsim.results.report.drawing.small_multiples import Curve, SmallMultiples

WALK, LINE = "walk", "line"
LABELS = {WALK: "layer by layer", LINE: "straight line"}
METRICS = ("loss", "error")


def walk_curves(rows: pd.DataFrame, metric: str) -> SmallMultiples:
    """Return loss or error over the share of the distance that is walked, along the walk and the straight line."""
    factor, unit = _scale(metric, rows)
    curves = []
    for number, (path, label) in enumerate(LABELS.items()):
        own = rows[rows["path"] == path].set_index("share")[metric] * factor
        curves.append(Curve(label, pd.DataFrame({"value": own, "low": float("nan"), "high": float("nan")}), number))
    return SmallMultiples({"": curves}, "share of the distance walked", f"{metric} ({unit})")


def walk_table(rows: pd.DataFrame) -> Table:
    """Return loss and error of the start, the end, halfway on the straight line, and the highest points of the walk."""
    walk, line = (rows[rows["path"] == path] for path in (WALK, LINE))
    middle = line.iloc[(line["share"] - 0.5).abs().argmin()]
    points = {
        "start": walk.iloc[0],
        "last point of the walk": walk.iloc[-1],
        "straight line, halfway": middle,
        "straight line, highest": line[list(METRICS)].max(),
        "walk, highest": walk[list(METRICS)].max(),
    }
    scales = {metric: _scale(metric, rows) for metric in METRICS}
    cells = tuple(
        (name, *(f"{point[metric] * scales[metric][0]:.4g}" for metric in METRICS)) for name, point in points.items()
    )
    headings = tuple(f"{metric} ({scales[metric][1]})" for metric in METRICS)
    return Table(("point", *headings), (False, True, True), cells)


def _scale(metric: str, rows: pd.DataFrame) -> tuple[float, str]:
    factor, unit = scale_of(metric, rows)
    return factor, "%" if unit == "percentage points" else unit
