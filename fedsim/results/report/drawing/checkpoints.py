"""Pictures and tables of the barriers between checkpoints and of their features, without a run."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd

from fedsim.analysis.mixing.names import AVERAGE, kind_of
from fedsim.analysis.suite import BY_LAYER
from fedsim.results.measured import scale_of, two_precisions
from fedsim.results.report.comparing.tables import Table
from fedsim.results.report.comparing.units import how_many
from fedsim.results.report.drawing import connectivity, prediction, width
from fedsim.results.report.drawing.barriers import REFERENCES, at_the_middle, barrier_table, has_paths, paths, quantity
from fedsim.results.report.drawing.heat_maps import HeatMaps
from fedsim.results.report.drawing.picture import Picture

MOST_ENDS = 8  # as many as fit on a page with their barriers by t
LONGEST = 20  # letters of a name of which a terminal of 80 columns has two in a row


def reference_of(rows: pd.DataFrame) -> str:
    """Return the reference that is shown: of pairs the chord, which is 0 at both ends of a path of all layers."""
    return "mean_ends" if (rows["other"] == AVERAGE).all() else "chord"


def checkpoint_pictures(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, Picture]:
    """Return the pictures of barriers between checkpoints, by the names of their files.

    Parameters
    ----------
    rows
        Table of `fedsim.analysis.barriers`.
    names
        Names of the checkpoints, by index.
    """
    pictures: dict[str, Picture] = {}
    for metric in ("loss", "error"):
        pictures[f"barriers-{metric}"] = heat_map(rows, names, metric)
        if has_paths(rows[rows["group"].map(kind_of) == ""]):
            pictures[f"paths-{metric}"] = paths(rows, metric, lambda index: _name(index, names))
    return pictures


def heat_map(rows: pd.DataFrame, names: Sequence[str], metric: str) -> HeatMaps:
    """Return barriers by group and model, or by group and t for each direction."""
    labelled = rows.assign(end=ends_of(rows, names))
    reference = reference_of(rows)
    ends, column = list(dict.fromkeys(labelled["end"])), f"{metric}_{reference}"
    if rows["t"].nunique() > 1 and len(ends) <= MOST_ENDS:
        tables = {end: barrier_table(labelled[labelled["end"] == end], column, "t") for end in ends}
        return HeatMaps(tables, quantity(metric, rows), across=2, columns="t")
    middle = at_the_middle(labelled, pairs=bool((rows["other"] != AVERAGE).any()))
    title = f"t = {middle['t'].iloc[0]:g}, minus {REFERENCES[reference]} {metric}"
    return HeatMaps({title: barrier_table(middle, column, "end")[ends]}, quantity(metric, rows), columns="")


def feature_pictures(tables: Mapping[str, pd.DataFrame]) -> dict[str, Picture]:
    """Return the pictures of the other measures of checkpoints, by the names of their files.

    Parameters
    ----------
    tables
        Tables of `fedsim.analysis` by name, and ``matching``; the names of models are in ``base_name`` and
        ``other_name``.
    """
    pictures: dict[str, Picture] = {}
    if "connectivity" in tables:
        pictures["connectivity"] = connectivity.connectivity(connectivity.halfway(tables["connectivity"]))
    if "exponential" in tables:
        pictures["exponential"] = width.exponential(connectivity.halfway(tables["exponential"]))
    if "stitching" in tables:
        pictures["stitching"] = connectivity.stitching(tables["stitching"])
    if "cka" in tables:
        rows = tables["cka"]
        pictures["cka"] = connectivity.cka(rows.assign(ends=_ends_named(rows)), "ends")
    if "spectra" in tables:
        pictures["stable-rank"] = connectivity.stable_ranks(tables["spectra"], "base_name")
        pictures["spectra"] = connectivity.spectra(tables["spectra"])
    if "prediction" in tables:
        rows = tables["prediction"]
        pictures["prediction"] = prediction.maps(rows.assign(ends=_ends_named(rows)), "ends")
    if "calibrated" in tables:
        rows = tables["calibrated"]
        pictures["calibrated"] = width.calibrated(rows.assign(ends=_ends_named(rows)), "ends")
    if "matching" in tables:
        pictures["matching"] = connectivity.matching(tables["matching"], "base_name")
    return pictures


def features_table(tables: Mapping[str, pd.DataFrame]) -> Table | None:
    """Return the other measures by layer, means over models or pairs; None if there are none."""
    columns = pd.DataFrame(dict(_columns(tables)))
    if columns.empty:
        return None
    order = list(dict.fromkeys(layer for name in BY_LAYER if name in tables for layer in tables[name]["layer"]))
    cells = tuple(
        (str(layer), *("-" if np.isnan(value) else f"{value:.4f}" for value in values))
        for layer, values in zip(order, columns.loc[order].to_numpy(dtype=float), strict=True)
    )
    return Table(("layer", *columns), (False, *[True] * len(columns.columns)), cells)


def _columns(tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, pd.Series]]:
    """Yield headings, and means by layer."""
    if "connectivity" in tables:
        rows = connectivity.halfway(tables["connectivity"])
        means = _means(rows[rows["base"] != AVERAGE])
        yield "1 - cosine", 1 - means["cosine"]
        yield "the two models'", 1 - means["cosine_ends"]
        yield from ((name, means[name]) for name in ("ratio", "coefficient"))
    if "exponential" in tables:
        means = _means(connectivity.halfway(tables["exponential"]))
        yield "exponential cosine", means["exponential"]
        yield "units shuffled", means["exponential_shuffled"]
        yield "no structure", means["exponential_control"]
        yield "reciprocal", means["reciprocal"]
    if "stitching" in tables:
        means = _means(tables["stitching"])
        factor, unit = scale_of("error", tables["stitching"])
        shown = "%" if factor == 100 else unit
        yield f"stitched error ({shown})", factor * means["error"]
        yield f"the models' error ({shown})", factor * means["error_ends"]
    if "cka" in tables:
        yield "CKA", _means(tables["cka"])["cka"]
    if "spectra" in tables:
        rows = tables["spectra"]
        yield "stable rank", _means(rows[rows["base"] != AVERAGE])["stable_rank"]
        yield "the average's stable rank", _means(rows[rows["base"] == AVERAGE])["stable_rank"]
    if "prediction" in tables:
        means = _means(tables["prediction"])
        yield "predicted barrier", means["loss_predicted"]
        yield "barrier at t = 0.5", means["loss_swap_ends"]


def _ends_named(rows: pd.DataFrame) -> pd.Series:
    ends = [rows["base_name"], rows["other_name"]]
    files = list(dict.fromkeys(name for end in ends for name in end if name != "average"))
    named = dict(zip(files, what_differs(files), strict=True)) | {"average": "average"}
    return ends[0].map(named) + ", " + ends[1].map(named)


def what_differs(names: Sequence[str]) -> list[str]:
    """Return names without the words that all begin and end with: of ``run-c0.pt, run-c1.pt`` only ``c0, c1``."""
    words = [re.split(r"([\W_])", name) for name in names]
    start = common_start([each[:-1] for each in words])
    end = common_start([each[:start:-1] for each in words])
    kept = ["".join(each[start : len(each) - end]) for each in words]
    return kept if len(names) > 1 and all(re.search(r"\w", each) for each in kept) else list(names)


def short_names(names: Sequence[str]) -> list[str]:
    """Return names that fit tables and legends: as they are, without what they share, or ``model 1, model 2``."""
    if max(map(len, names)) <= LONGEST:
        return list(names)
    kept = what_differs(names)
    return kept if max(map(len, kept)) <= LONGEST else [f"model {number}" for number in range(1, len(names) + 1)]


def common_start(lists: Sequence[Sequence[str]]) -> int:
    """Return how many first entries are the same in all lists."""
    return sum(1 for _ in takewhile(lambda each: len(set(each)) == 1, zip(*lists, strict=False)))


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.groupby("layer", sort=False).mean(numeric_only=True)


def matching_table(rows: pd.DataFrame) -> Table:
    """Return by order of units and checkpoint the share of them that moved, in percent."""
    others = connectivity.without_first(rows)
    cells = tuple(
        (str(row["order"]), str(row["base_name"]), f"{row['units']:,}", f"{100 * row['moved']:.1f}")
        for row in others.to_dict(orient="records")
    )
    return Table(("units", "checkpoint", "number", "moved (%)"), (False, False, True, True), cells)


def barriers_table(rows: pd.DataFrame, names: Sequence[str]) -> Table:
    """Return the barriers of each t, errors in percentage points or squares, ± 1.96 standard errors.

    What models were evaluated on is a column only where it is not the same number of examples for all.
    """
    factor, reference = scale_of("error", rows)[0], reference_of(rows)
    count = rows["n"].nunique() > 1
    headings = ["group", "base", "other", "t", "loss barrier", "error barrier", "loss", "error"]
    headings += ["examples"] if count else []
    cells = tuple(
        (
            str(row["group"]),
            _name(int(row["base"]), names),
            _name(int(row["other"]), names),
            f"{row['t']:g}",
            _with_error(row, f"loss_{reference}", 1.0, 4),
            _with_error(row, f"error_{reference}", factor, 2),
            f"{row['loss']:.4f}",
            f"{factor * row['error']:.2f}",
            *([f"{int(row['n']):,}"] if count else []),
        )
        for row in rows.to_dict(orient="records")
    )
    return Table(tuple(headings), (False, False, False, *[True] * (len(headings) - 3)), cells)


def peaks_table(peaks: pd.DataFrame, names: Sequence[str]) -> Table:
    """Return the largest barrier of each path over t, with its band."""
    factor, reference = scale_of("error", peaks)[0], reference_of(peaks)
    loss, error = (f"{metric}_{reference}_max" for metric in ("loss", "error"))
    headings = ("group", "base", "other", "loss barrier (band)", "at t", "error barrier (band)")
    cells = tuple(
        (
            str(row["group"]),
            _name(int(row["base"]), names),
            _name(int(row["other"]), names),
            _with_ends(row, loss, 1.0, 4),
            f"{row[f'{loss}_t']:g}",
            _with_ends(row, error, factor, 2),
        )
        for row in peaks.to_dict(orient="records")
    )
    return Table(headings, (False, False, False, *[True] * 3), cells, (peaks_note(peaks),))


def _with_error(row: Mapping[Any, Any], name: str, factor: float, digits: int) -> str:
    half = factor * 1.96 * row[f"{name}_se"]
    return f"{factor * row[name]:+.{digits}f} ± {'-' if np.isnan(half) else f'{half:.{digits}f}'}"


def _with_ends(row: Mapping[Any, Any], name: str, factor: float, digits: int) -> str:
    value, low, high = (f"{factor * row[key]:+.{digits}f}" for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value} ({'-' if np.isnan(row[f'{name}_low']) else f'{low} to {high}'})"


def peaks_note(peaks: pd.DataFrame) -> str:
    """Say what the largest barriers are."""
    above = {
        "chord": "the straight line between the losses of the two models, which is 0 at both ends of a whole path",
        "mean_ends": "the mean of all models' losses",
    }[reference_of(peaks)]
    return f"largest value over t above {above}; bands hold for all rows of a column together (95 %)"


def uncertainty_note(rows: pd.DataFrame) -> str:
    """Return what the intervals of the table and the bands of the file rest on, in lines that fit a terminal."""
    along = f"; path: {rows['path'].iloc[0]}" if "path" in rows else ""
    sample = str(rows["sampling"].iloc[0])
    if not re.search(r"\d", sample):
        sample += f", {how_many(int(rows['n'].max()), 'example')}"
    precisions = f"\nprecision: {text}" if (text := two_precisions(rows)) else ""
    return (
        "±: 1.96 standard errors, row by row; bands for all rows are in barriers.parquet\n"
        f"sample: {sample}; intervals are for the population of the data set{along}{precisions}"
    )


def ends_of(rows: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Return what is mixed into what, by row."""
    ends = zip(rows["base"], rows["other"], strict=True)
    return [names[a] if b == AVERAGE else f"{names[b]} into {names[a]}" for a, b in ends]


def _name(index: int, names: Sequence[str]) -> str:
    return "the average" if index == AVERAGE else names[index]
