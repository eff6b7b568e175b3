"""Figures of layer-wise features and units: connectivity, stitching, CKA, spectra and matching.

Zhou et al. 2023, Going beyond linear mode connectivity: the layerwise linear feature connectivity, arXiv 2307.08286.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from fedsim.analysis.mixing.names import AVERAGE
from fedsim.results.measured import scale_of
from fedsim.results.report.drawing.barriers import barrier_table, last_round
from fedsim.results.report.drawing.heat_maps import HeatMaps, Quantity
from fedsim.results.report.drawing.layer_curves import LayerCurves, LayerPanel, spread
from fedsim.results.report.drawing.small_multiples import Curve, SmallMultiples

# Singular values below this share of the largest are left out.
SMALLEST_SHARE = 1e-4


def halfway(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each two models at the t nearest to 1/2, and those of the average of all."""
    apart = (rows["t"] - 0.5).abs()
    return rows[(rows["base"] == AVERAGE) | (apart == apart[rows["base"] != AVERAGE].min())]


def connectivity(rows: pd.DataFrame) -> LayerCurves:
    """Return by layer whether features of mixed models are mixes of features, and why, in the last round.

    Parameters
    ----------
    rows
        Table of `fedsim.analysis.connectivity` at one t, of models with their average or with each other.
    """
    rows = last_round(rows)
    each, all_of_them = rows[rows["base"] != AVERAGE], rows[rows["base"] == AVERAGE]
    panels = [
        LayerPanel("1 - cosine, mean over the examples", list(_angles(each, all_of_them)), log=True),
        LayerPanel("ratio of the two", list(_of_both(each, all_of_them, "ratio")), log=True, mark=1.0),
        LayerPanel(
            "coefficient of the mix in the mixed features", list(_of_both(each, all_of_them, "coefficient")), mark=1.0
        ),
        LayerPanel("commutativity: relative squared distances", list(_commutativity(each)), log=True),
        LayerPanel(
            "additivity of the nonlinearity that follows: relative squared distance",
            list(_of_both(each, all_of_them, "additivity")),
            log=True,
        ),
    ]
    return LayerCurves(panels)


def _angles(each: pd.DataFrame, all_of_them: pd.DataFrame) -> Iterator[Curve]:
    yield Curve("mixed model and mix", spread(each, 1 - each["cosine"]), 0)
    yield Curve("the two models", spread(each, 1 - each["cosine_ends"]), 1)
    if len(all_of_them):
        yield Curve("average of all\nand mix of all", spread(all_of_them, 1 - all_of_them["cosine"]), 2)
        yield Curve("all pairs of models", spread(all_of_them, 1 - all_of_them["cosine_ends"]), 3)


def _of_both(each: pd.DataFrame, all_of_them: pd.DataFrame, column: str) -> Iterator[Curve]:
    yield Curve("mixed models", spread(each, each[column]), 0)
    if len(all_of_them):
        yield Curve("average of all", spread(all_of_them, all_of_them[column]), 2)


def _commutativity(rows: pd.DataFrame) -> Iterator[Curve]:
    texts = {
        "commutativity": "weights swapped",
        "weight_distance": "the weights",
        "feature_distance": "the layer's inputs",
    }
    for number, (column, text) in enumerate(texts.items()):
        yield Curve(text, spread(rows, rows[column]), number)


def ratios(rows: pd.DataFrame) -> HeatMaps:
    """Return by layer and round the distance of mixed features from the mix, relative to that of the models."""
    table = _table(rows[rows["base"] != AVERAGE], "ratio")
    return HeatMaps({"1 - cosine of mixed model and mix, over that of the two": table}, Quantity("ratio", 1.0, False))


def stitching(rows: pd.DataFrame) -> LayerCurves:
    """Return by layer the loss and error of models whose later layers come from another one, in the last round."""
    rows = last_round(rows)
    units = {}
    for metric in ("loss", "error"):
        factor, unit = scale_of(metric, rows)
        units[metric] = f"{metric} ({'%' if factor == 100 else unit})", factor
    return LayerCurves(
        [
            LayerPanel(
                title,
                [
                    Curve("stitched here", spread(rows, rows[metric], factor), 0),
                    Curve("the two models", spread(rows, rows[f"{metric}_ends"], factor), 1),
                ],
            )
            for metric, (title, factor) in units.items()
        ]
    )


def cka(rows: pd.DataFrame, over: str = "round") -> HeatMaps:
    """Return by layer and round, or another column, how similar the features of two models are up to a rotation."""
    return HeatMaps(
        {"linear CKA of two models' features": _table(rows, "cka", over)},
        Quantity("CKA", signed=False, aligned=True),
        columns=over if over == "round" else "",
    )


def stable_ranks(rows: pd.DataFrame, over: str = "round") -> HeatMaps:
    """Return by layer and round, or another column, how many directions the weights span."""
    parts = {text: part for text, part, _ in _models(rows)} if over == "round" else {"models and their average": rows}
    tables = {text: _table(part, "stable_rank", over) for text, part in parts.items()}
    return HeatMaps(tables, Quantity("stable rank", signed=False), across=2, columns=over if over == "round" else "")


def spectra(rows: pd.DataFrame) -> SmallMultiples:
    """Return by layer the singular values, relative to the largest, in the last round."""
    rows = last_round(rows)
    panels: dict[str, list[Curve]] = {}
    for text, part, number in _models(rows):
        for layer, of_layer in part.groupby("layer", sort=False):
            panels.setdefault(str(layer), []).append(Curve(text, _shares(of_layer), number))
    return SmallMultiples(panels, "number of the singular value", "share of the largest", log=True, log_y=True)


def matching(rows: pd.DataFrame, over: str = "round") -> HeatMaps:
    """Return by order of units and round, or another column, the share of them that moved.

    The units of the first model stay in place and are left out.
    """
    matched = without_first(rows)
    named = matched.assign(layer=matched["order"] + " (" + matched["units"].astype(str) + ")")
    return HeatMaps(
        {"units in another place": _table(named, "moved", over)},
        Quantity("share of units (%)", 100.0, signed=False),
        columns=over if over == "round" else "",
    )


def without_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what matching did to the models of each round but the first, to which the others are matched."""
    rounds = rows["round"] if "round" in rows else pd.Series(0, rows.index)
    return rows[rows["base"] != rows.groupby(rounds)["base"].transform("first")]


def _models(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, int]]:
    """Yield the rows of the models themselves and of their average, where there are some, and their colour."""
    for number, (text, part) in enumerate(
        (("models, mean", rows[rows["base"] != AVERAGE]), ("their average", rows[rows["base"] == AVERAGE]))
    ):
        if len(part):
            yield text, part, number


def _shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean, least and greatest of the singular values over the largest, by their number from 1."""
    values = np.array(rows["singular_values"].tolist(), dtype=float)
    shares = values / np.maximum(values.max(axis=1, keepdims=True), np.finfo(float).tiny)
    shares = np.where(shares >= SMALLEST_SHARE, shares, np.nan)
    known = np.isfinite(shares).all(axis=0)
    shares = shares[:, known]
    columns = {"value": shares.mean(0), "low": shares.min(0), "high": shares.max(0)}
    return pd.DataFrame(columns, index=1 + np.flatnonzero(known))


def _table(rows: pd.DataFrame, column: str, over: str = "round") -> pd.DataFrame:
    table = barrier_table(rows.rename(columns={"layer": "group"}), column, over)
    return table if over == "round" else table[list(dict.fromkeys(rows[over]))]
