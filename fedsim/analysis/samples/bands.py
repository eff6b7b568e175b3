"""Confidence bands that hold for all rows of a measurement at once, from a joint bootstrap over examples."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedsim.analysis.samples.per_example import METRICS, REFERENCES, Measurement
from fedsim.seeds import rng

DRAWS = 1000
# Draws in a batch, so that their weights take little memory compared with the losses.
TILE = 100


class Band(NamedTuple):
    """Lower and upper ends, shape [rows]."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


def resampling_weights(strata: NDArray[np.int64], draws: int, stream: np.random.Generator) -> NDArray[np.float64]:
    """Draw how often each example counts when examples are resampled within their strata.

    Parameters
    ----------
    strata
        Strata of the examples, shape [n]; those of one example, whose spread is unknown, are joined into one stratum.

    Returns
    -------
    NDArray
        Shape [draws, n]; each row sums to n.

    Notes
    -----
    From a stratum with m examples m - 1 are drawn, and count m / (m - 1) times: otherwise its variance would be
    too small by (m - 1) / m (Rao, Wu 1988, Resampling inference with complex survey data).
    """
    sizes = np.bincount(strata)
    strata = np.where(sizes[strata] == 1, len(sizes), strata)
    weights = np.ones((draws, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        if (m := len(members)) > 1:
            drawn = stream.integers(m, size=(draws, m - 1)) + m * np.arange(draws)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=draws * m).reshape(draws, m)
            weights[:, members] = counts * (m / (m - 1))
    return weights


def resampled_means(
    values: Mapping[str, NDArray[np.float64]], strata: NDArray[np.int64], draws: int, stream: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """Return the means of all rows over resampled examples, which are the same for all rows and names.

    Parameters
    ----------
    values
        Shape [rows, n] for each name.

    Returns
    -------
    dict
        Shape [rows, draws] for each name.
    """
    tiles: dict[str, list[NDArray[np.float64]]] = {name: [] for name in values}
    for start in range(0, draws, TILE):
        weights = resampling_weights(strata, min(TILE, draws - start), stream).T / len(strata)
        # The loss of a model that overflows is not finite, and so is what comes of it.
        with np.errstate(invalid="ignore", over="ignore"):
            for name, rows in values.items():
                tiles[name].append(rows @ weights)
    return {name: np.concatenate(parts, 1) for name, parts in tiles.items()}


def simultaneous(means: NDArray[np.float64], resampled: NDArray[np.float64], level: float) -> Band:
    """Return bands that hold all true means together with probability ``level``.

    Parameters
    ----------
    means, resampled
        Shapes [rows] and [rows, draws]. A row that does not vary gets a band of no width, one that is not finite
        gets NaN.

    Notes
    -----
    The half-width is the same multiple of each row's standard error: the quantile of the largest deviation over
    all rows, in standard errors.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        deviations = np.abs(resampled - means[:, None])
        error = resampled.std(1)
    finite = np.isfinite(means) & np.isfinite(error)
    half_width = np.where(finite, 0.0, np.nan)
    # What varies by rounding only does not vary.
    varies = finite & (error > 1e-12 * (1 + np.abs(means)))
    if varies.any():
        largest = (deviations[varies] / error[varies, None]).max(0)
        half_width[varies] = np.quantile(largest, level, method="higher") * error[varies]
    return Band(means - half_width, means + half_width)


def check_level(level: float, name: str = "level") -> None:
    """Check a confidence level.

    Raises
    ------
    ValueError
        If it is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"{name} = {level} must be between 0 and 1, such as 0.95")


def with_bands(measurement: Measurement, level: float, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Return the table with columns ``_low`` and ``_high`` for each barrier; each column has a separate band.

    Parameters
    ----------
    level
        Probability that all true barriers of a column are inside together.

    Raises
    ------
    ValueError
        If ``level`` is not between 0 and 1.
    """
    check_level(level)
    columns: dict[str, object] = {}
    resampled = resampled_means(measurement.values, measurement.strata, draws, rng(seed, "bootstrap"))
    for name in map(str, measurement.table):
        columns[name] = measurement.table[name]
        metric, _, reference = name.removesuffix("_se").partition("_")
        if name.endswith("_se") and reference in REFERENCES:
            low, high = _band(measurement, resampled[metric], metric, reference, level)
            columns |= {f"{metric}_{reference}_low": low, f"{metric}_{reference}_high": high}
    return pd.DataFrame(columns)


def peaks(
    measurement: Measurement, reference: str = "chord", *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """Return the largest barrier of each path over t, with bands that hold for all paths at once.

    Returns
    -------
    pandas.DataFrame
        One row per ``group, base, other``: for each metric ``loss_chord_max`` (or another reference), the ``t`` where
        it is, ``loss_chord_max_t``, and the ends of its band, ``loss_chord_max_low`` and ``loss_chord_max_high``.

    Raises
    ------
    ValueError
        If ``level`` is not between 0 and 1, or the reference is not in the table.

    Notes
    -----
    The ends are the largest lower and the largest upper end along the path. Where all values are inside their bands,
    so is the largest, whichever it is; a bootstrap of the maximum itself fails where several are about equal.
    """
    check_level(level)
    measured = [name for name in REFERENCES if f"loss_{name}" in measurement.table]
    if reference not in measured:
        raise ValueError(f"reference = {reference!r} must be one of those measured: {', '.join(measured)}")
    path = ["group", "base", "other"]
    curves = measurement.table.groupby(path, sort=False)
    result = curves.size().reset_index()[path]
    codes = curves.ngroup().to_numpy()
    resampled = resampled_means(measurement.values, measurement.strata, draws, rng(seed, "bootstrap"))
    for metric in METRICS:
        values = measurement.table[f"{metric}_{reference}"].to_numpy()
        low, high = _band(measurement, resampled[metric], metric, reference, level)
        # The last of each path in this order is its largest value, and among equals that of the smallest t.
        order = np.lexsort((-measurement.comparisons.t, values, codes))
        top = order[np.flatnonzero(np.diff(codes[order], append=-1))]
        name = f"{metric}_{reference}_max"
        result[name], result[f"{name}_t"] = values[top], measurement.comparisons.t[top]
        for end, side in (("low", low), ("high", high)):
            result[f"{name}_{end}"] = pd.Series(side).groupby(codes).max().to_numpy()
    return result


def _band(measurement: Measurement, resampled: NDArray[np.float64], metric: str, reference: str, level: float) -> Band:
    means = measurement.table[f"{metric}_{reference}"].to_numpy()
    if len(measurement.strata) == 1:
        return Band(means * np.nan, means * np.nan)
    # A barrier is linear in the losses, so the mean of a barrier is the barrier of the means.
    with np.errstate(invalid="ignore", over="ignore"):
        drawn = measurement.comparisons.barriers(resampled, reference)
    return simultaneous(means, drawn, level)
