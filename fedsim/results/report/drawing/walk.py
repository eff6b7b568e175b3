"""The figure and table of a walk between two models, next to linear interpolation."""

import pandas as pd

from fedsim.results.measured import scale_of
from fedsim.results.report.comparing.tables import Table
from fedsim.results.report.drawing.small_multiples import Curve, SmallMultiples

LAYER_WISE, LINEAR = "layer-wise", "linear"
LABELS = {LAYER_WISE: "layer-wise walk", LINEAR: "linear interpolation"}
METRICS = ("loss", "error")


def walk_curves(rows: pd.DataFrame, metric: str) -> SmallMultiples:
    """Return loss or error over the share of the distance that is walked, along the walk and linear interpolation."""
    factor, unit = _scale(metric, rows)
    curves = []
    for number, (curve, label) in enumerate(LABELS.items()):
        own = rows[rows["curve"] == curve].set_index("share")[metric] * factor
        curves.append(Curve(label, pd.DataFrame({"value": own, "low": float("nan"), "high": float("nan")}), number))
    return SmallMultiples({"": curves}, "share of the distance walked", f"{metric} ({unit})")


def walk_table(rows: pd.DataFrame) -> Table:
    """Return loss and error of the start, the end, halfway between them, and the highest of both curves."""
    walk, line = (rows[rows["curve"] == curve] for curve in (LAYER_WISE, LINEAR))
    middle = line.iloc[(line["share"] - 0.5).abs().argmin()]
    points = {
        "start": walk.iloc[0],
        "last point of the walk": walk.iloc[-1],
        "linear interpolation, halfway": middle,
        "linear interpolation, highest": line[list(METRICS)].max(),
        "walk, highest": walk[list(METRICS)].max(),
    }
    scales = {metric: _scale(metric, rows) for metric in METRICS}
    cells = tuple(
        (name, *(f"{point[metric] * scales[metric][0]:.4g}" for metric in METRICS)) for name, point in points.items()
    )
    headings = tuple(f"{metric} ({scales[metric][1]})" for metric in METRICS)
    return Table(("point", *headings), (False, True, True), cells)


def stopped_after(rows: pd.DataFrame) -> int:
    """Return after how many layer steps a walk stopped before the end; 0 if it has arrived."""
    last = rows[rows["curve"] == LAYER_WISE].iloc[-1]
    return int(last["steps"]) if last["share"] < 1 else 0


def _scale(metric: str, rows: pd.DataFrame) -> tuple[float, str]:
    factor, unit = scale_of(metric, rows)
    return factor, "%" if unit == "percentage points" else unit
