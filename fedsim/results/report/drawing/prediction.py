"""Figures of barriers predicted from the ends of a path, next to the measured ones."""

import pandas as pd

from fedsim.results.report.drawing.barriers import barrier_table, quantity
from fedsim.results.report.drawing.heat_maps import HeatMaps
from fedsim.results.report.drawing.small_multiples import Curve, SmallMultiples

PREDICTED = {
    "loss_swap_ends": "measured halfway,\nminus the mean loss of the path's ends",
    "loss_predicted": "predicted from gradients and\ncurvature at the ends",
}


def maps(rows: pd.DataFrame, over: str = "round") -> HeatMaps:
    """Return by layer and round, or another column, the measured barriers and the predicted ones."""
    named = rows.rename(columns={"layer": "group"})
    tables = {text: barrier_table(named, column, over) for column, text in PREDICTED.items()}
    return HeatMaps(tables, quantity("loss", rows), across=2, columns=over if over == "round" else "")


def correlations(rows: pd.DataFrame) -> SmallMultiples:
    """Return over the rounds how alike both rank the layers: the mean over pairs, and the smallest and largest."""
    of_pairs = rows.groupby(["round", "base", "other"])["rank_correlation"].first().groupby("round")
    points = pd.DataFrame({"value": of_pairs.mean(), "low": of_pairs.min(), "high": of_pairs.max()})
    panels = {"": [Curve("rank correlation of predicted and measured barriers", points, 0)]}
    return SmallMultiples(panels, "round", "rank correlation", of_rounds=True)
