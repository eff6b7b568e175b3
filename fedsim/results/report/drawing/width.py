"""Figures of wide networks: exponentially weighted features, and barriers of calibrated models.

Ito et al. 2026, layer-wise exponentially weighted connectivity of wide networks.
"""

import pandas as pd

from fedsim.analysis.mixing.names import AVERAGE
from fedsim.results.report.comparing.tables import Table
from fedsim.results.report.drawing.barriers import barrier_table, last_round, quantity
from fedsim.results.report.drawing.connectivity import halfway
from fedsim.results.report.drawing.heat_maps import HeatMaps
from fedsim.results.report.drawing.layer_curves import LayerCurves, LayerPanel, spread
from fedsim.results.report.drawing.small_multiples import Curve

CALIBRATED = {
    "barrier": "none",
    "barrier_merged": "mixed model",
    "barrier_all": "all models",
}


def exponential(rows: pd.DataFrame) -> LayerCurves:
    """Return by layer how close mixed models are to those of disjoint units, next to the controls, in the last round.

    Parameters
    ----------
    rows
        Table of the measure ``exponential`` at one t.
    """
    rows = last_round(rows)
    cosines = {
        "exponential": "mixed model and\nexponential mix",
        "exponential_shuffled": "the other's units\nshuffled",
        "exponential_control": "no structure",
    }
    distances = {"additivity": "mixed models", "additivity_control": "no structure"}
    title = "additivity of the nonlinearity that follows: relative squared distance"
    return LayerCurves(
        [
            LayerPanel("cosine of features, mean over the examples", _curves(rows, cosines)),
            LayerPanel(
                "norm of the other's weights times the inputs, over the own weights'",
                _curves(rows, {"reciprocal": "mixed models"}),
                mark=1.0,
            ),
            LayerPanel(title, _curves(rows, distances)),
        ]
    )


def calibrated(rows: pd.DataFrame, over: str = "round") -> HeatMaps:
    """Return by kind of calibration and round, or another column, the barriers of whole models next to t = 1/2."""
    rows = halfway(rows)
    each = [rows.assign(group=text, shown=rows[column]) for column, text in CALIBRATED.items()]
    table = barrier_table(pd.concat(each, ignore_index=True), "shown", over)
    return HeatMaps(
        {"barrier, by what is calibrated": table}, quantity("loss", rows), columns=over if over == "round" else ""
    )


def calibrated_table(rows: pd.DataFrame) -> Table:
    """Return the barriers of whole checkpoints at each t, in nats, and the best inverse temperature."""
    columns = ("beta", *CALIBRATED)
    cells = tuple(
        (
            str(row["base_name"]),
            "average" if row["other"] == AVERAGE else str(row["other_name"]),
            f"{row['t']:g}",
            *(f"{row[column]:.4f}" for column in columns),
        )
        for row in rows.to_dict(orient="records")
    )
    headings = ("model", "with", "t", "inverse temperature", "barrier", "mixed model calibrated", "all calibrated")
    return Table(headings, (False, False, *[True] * (1 + len(columns))), cells)


def _curves(rows: pd.DataFrame, columns: dict[str, str]) -> list[Curve]:
    return [Curve(text, spread(rows, rows[column]), number) for number, (column, text) in enumerate(columns.items())]
