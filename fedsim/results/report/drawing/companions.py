"""Figures of measures besides barriers: robustness, distances, criticality, interaction and similarity."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from fedsim.results.measured import scale_of
from fedsim.results.report.drawing.barriers import barrier_table, quantity
from fedsim.results.report.drawing.heat_maps import HeatMaps, Quantity
from fedsim.results.report.drawing.small_multiples import Curve, SmallMultiples

# Labels and places of the directions: one that is absent does not change the others' colours.
ROBUSTNESS = {"average": "averaging direction", "random": "random, equal norm (± std over draws)"}


def robustness(rows: pd.DataFrame, metric: str) -> SmallMultiples:
    """Return by group the cost of moving towards the average, and in random directions of equal norm.

    Parameters
    ----------
    rows
        Table of `fedsim.analysis.robustness` with a column ``round``; the last round is shown.
    """
    rows = rows[rows["round"] == rows["round"].max()]
    panels = {
        group: [Curve(each.label, _from_zero(each.points), each.number) for each in curves]
        for group, curves in _by_group(rows, ROBUSTNESS, "t", f"{metric}_own_base", metric).items()
    }
    return SmallMultiples(panels, "t: share of the distance", _more(metric, rows))


def robustness_map(rows: pd.DataFrame, metric: str) -> HeatMaps:
    """Return by group and round how much more the direction of the average costs than random ones of equal norm."""
    rows = rows[rows["t"] == rows["t"].max()]
    column = f"{metric}_own_base"
    average, random = (barrier_table(rows[rows["direction"] == each], column) for each in ("average", "random"))
    tables = {"averaging direction": average, "averaging direction,\nminus random directions": average - random}
    return HeatMaps(tables, quantity(metric, rows, "minus its own"), across=2)


def distances(rows: pd.DataFrame) -> HeatMaps:
    """Return by group and round the distances of clients from their partners, relative to the layer's norm."""
    return HeatMaps(
        {"L2 distance over the norm\nof the client's own layer": barrier_table(rows, "distance_relative")},
        Quantity("relative distance", signed=False),
    )


def cosines(rows: pd.DataFrame) -> HeatMaps:
    """Return by group and round the cosines between models' weights, and between their displacements from the start."""
    texts = {"cosine": "weights", "cosine_from_start": "displacements from the round's start"}
    tables = {text: barrier_table(rows, column) for column, text in texts.items() if column in rows}
    return HeatMaps(tables, Quantity("cosine", signed=False, aligned=True), across=2)


def variances(rows: pd.DataFrame) -> HeatMaps:
    """Return by layer and round the share of the clients' variance that the global model's weights have."""
    rows = rows.rename(columns={"layer": "group"}).astype({"ratio": float})
    table = barrier_table(rows, "ratio").clip(upper=1.0)
    return HeatMaps(
        {"variance over the clients' mean": table}, Quantity("ratio of variances", signed=False, aligned=True)
    )


def criticality(rows: pd.DataFrame) -> HeatMaps:
    """Return by group and round the cost of resetting a layer to the start of the round."""
    table = barrier_table(rows, "loss_own_base")
    return HeatMaps({"layer reset to the round's start, minus own loss": table}, quantity("loss", rows, "difference"))


def interaction(rows: pd.DataFrame) -> HeatMaps:
    """Return the interaction of each pair of layers in the last round."""
    pairs = rows[(rows["first"] != "") & (rows["round"] == rows["round"].max())]
    names = list(dict.fromkeys([*pairs["first"], *pairs["second"]]))
    half = pairs.pivot_table(index="first", columns="second", values="loss_interaction", sort=False)
    half = half.reindex(index=names, columns=names)
    both = half.combine_first(half.T).loc[names, names]
    return HeatMaps({"both layers minus each alone": both}, quantity("loss", rows, "interaction"), columns="")


def unexplained(rows: pd.DataFrame) -> SmallMultiples:
    """Return over the rounds the full barrier minus the sum of the single ones."""
    whole = rows[rows["first"] == ""].groupby("round")[["loss_interaction", "loss_interaction_se"]].mean()
    value, half = whole["loss_interaction"], 1.96 * whole["loss_interaction_se"]
    points = pd.DataFrame({"value": value, "low": value - half, "high": value + half})
    panels = {"full": [Curve("full minus the single layers", points, 0)]}
    return SmallMultiples(panels, "round", f"loss ({scale_of('loss', rows)[1]})", of_rounds=True)


def similarity(rows: pd.DataFrame) -> SmallMultiples:
    """Return over the rounds how often the models of two clients agree."""
    texts = {"same_class": "same most likely class", "same_probability": "equal probabilities (to 1e-4)"}
    curves = [
        Curve(
            text, pd.DataFrame({"value": 100 * rows.groupby("round")[column].mean(), "low": np.nan, "high": np.nan}), k
        )
        for k, (column, text) in enumerate(texts.items())
    ]
    return SmallMultiples({"": curves}, "round", "share of the examples (%)", of_rounds=True)


def _by_group(
    rows: pd.DataFrame, texts: Mapping[str, str], over: str, column: str, metric: str
) -> dict[str, list[Curve]]:
    """Return the curves of each group, ``full`` first."""
    groups = sorted(rows["group"].unique(), key=lambda group: group != "full")
    return {group: _curves(rows[rows["group"] == group], texts, over, column, metric) for group in groups}


def _curves(rows: pd.DataFrame, texts: Mapping[str, str], over: str, column: str, metric: str) -> list[Curve]:
    """Return a curve for each direction: the mean over bases, and the mean spread over draws as its band."""
    factor, _ = scale_of(metric, rows)
    curves = []
    for number, (direction, text) in enumerate(texts.items()):
        means = rows[rows["direction"] == direction].groupby(over)[[column, f"{metric}_spread"]].mean()
        if len(means):
            value, spread = factor * means[column], factor * means[f"{metric}_spread"]
            points = pd.DataFrame({"value": value, "low": value - spread, "high": value + spread})
            curves.append(Curve(text, points, number))
    return curves


def _from_zero(points: pd.DataFrame) -> pd.DataFrame:
    """Begin where a model is itself."""
    if 0.0 in points.index:
        return points
    return pd.concat([pd.DataFrame(0.0, index=[0.0], columns=points.columns), points])


def _more(metric: str, rows: pd.DataFrame) -> str:
    return f"{metric} minus its own ({scale_of(metric, rows)[1]})"
