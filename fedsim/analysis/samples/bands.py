"""Confidence bands that hold for all rows of a column at once, from a bootstrap of the examples as they were drawn."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedsim.analysis.arguments import check_is_number, kind
from fedsim.analysis.samples.per_example import METRICS, REFERENCES, Measurement, spreads
from fedsim.analysis.samples.sampling import Resamples, Sampling, Spread
from fedsim.seeds import rng

DRAWS = 1000
# Weights of examples that are in memory together: of all draws, unless there are very many examples.
MOST_WEIGHTS = 2**24
# Least part of a squared standard error that a draw must leave. Where few examples differ, some draws have none of
# them, and nothing to divide by.
LEAST_LEFT = 0.1


class Band(NamedTuple):
    """Lower and upper ends, shape [rows]."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


def varies(mean: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which means are uncertain: what varies by rounding only does not vary."""
    return np.isfinite(mean) & np.isfinite(error) & (error > 1e-12 * (1 + np.abs(mean)))


def largest_deviations(spread: Spread, sampling: Sampling, drawn: Resamples) -> NDArray[np.float64]:
    """Return by draw the largest distance, over the rows, of a mean from that of the sample in its own standard errors.

    Notes
    -----
    A sample that misses rare large losses has too small a mean and too small a standard error, so that a multiple of
    the latter must be larger than for a normal distribution; draws show by how much if each mean is divided by the
    standard error of its own draw (Hall 1988, Theoretical comparison of bootstrap confidence intervals).
    """
    rows = varies(spread.mean, spread.error)
    if not rows.any():
        return np.zeros(len(drawn.of_values))
    error = spread.error[rows, None]
    values = spread.centred[rows] / (error * len(sampling.strata))
    squares = np.square(spread.deviations[rows] / error) * sampling.factors
    between = spread.between[rows, None] / error**2
    means = values.astype(np.float32) @ drawn.of_values.T
    left = squares.astype(np.float32) @ drawn.of_squares.T + between.astype(np.float32)
    # A variance is about the mean of its draw, not about that of the sample.
    left -= np.square(means) / spread.freedom[rows, None].astype(np.float32)
    return np.sqrt((np.square(means) / np.maximum(left, LEAST_LEFT)).max(0).astype(np.float64))


def check_level(level: float, name: str = "level") -> None:
    """Check a confidence level.

    Raises
    ------
    ValueError
        If it is not between 0 and 1.
    """
    check_is_number(name, level, "give a level such as 0.95")
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
    bands = _bands(measurement, level, draws, seed)
    for name in map(str, measurement.table):
        columns[name] = measurement.table[name]
        barrier = name.removesuffix("_se")
        if name != barrier and barrier in bands:
            columns |= {f"{barrier}_low": bands[barrier].low, f"{barrier}_high": bands[barrier].high}
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
    TypeError
        If a table is given instead of a measurement.
    ValueError
        If ``level`` is not between 0 and 1, or the reference is not in the table.

    Notes
    -----
    The ends are the largest lower and the largest upper end along the path. Where all values are inside their bands,
    so is the largest, whichever it is; a bootstrap of the maximum itself fails where several are about equal.
    """
    check_level(level)
    if not isinstance(measurement, Measurement):
        raise TypeError(f"peaks takes what fedsim.analysis.measure returns, not {kind(measurement)}")
    measured = [name for name in REFERENCES if f"loss_{name}" in measurement.table]
    if reference not in measured:
        raise ValueError(f"reference = {reference!r} must be one of those measured: {', '.join(measured)}")
    path = ["group", "base", "other"]
    curves = measurement.table.groupby(path, sort=False)
    result = curves.size().reset_index()[path]
    codes = curves.ngroup().to_numpy()
    bands = _bands(measurement, level, draws, seed, [reference])
    for metric in METRICS:
        values = measurement.table[f"{metric}_{reference}"].to_numpy()
        low, high = bands[f"{metric}_{reference}"]
        # The last of each path in this order is its largest value, and among equals that of the smallest t.
        order = np.lexsort((-measurement.comparisons.t, values, codes))
        top = order[np.flatnonzero(np.diff(codes[order], append=-1))]
        name = f"{metric}_{reference}_max"
        result[name], result[f"{name}_t"] = values[top], measurement.comparisons.t[top]
        for end, side in (("low", low), ("high", high)):
            result[f"{name}_{end}"] = pd.Series(side).groupby(codes).max().to_numpy()
    return result


def _bands(
    measurement: Measurement, level: float, draws: int, seed: int, references: Iterable[str] = REFERENCES
) -> Mapping[str, Band]:
    """Return the band of each barrier; all see the same draws.

    The half-width is the same multiple of each row's standard error: a quantile of the largest deviation over all rows.
    """
    table, sampling = measurement.table, measurement.sampling
    columns = {
        f"{metric}_{reference}": (measurement.values[metric], reference)
        for metric in METRICS
        for reference in references
        if f"{metric}_{reference}" in table
    }
    largest: dict[str, list[NDArray[np.float64]]] = {name: [] for name in columns}
    # The loss of a model that overflows is not finite, and so is what comes of it.
    with np.errstate(invalid="ignore", over="ignore"):
        stream, size = rng(seed, "bootstrap"), max(1, MOST_WEIGHTS // len(sampling.strata))
        for start in range(0, draws, size):
            drawn = sampling.resample(min(size, draws - start), stream)
            for name, (values, reference) in columns.items():
                every = [
                    largest_deviations(spread, sampling, drawn)
                    for _, spread in spreads(measurement.comparisons, values, reference, sampling)
                ]
                largest[name].append(np.max(every, 0))
    return {name: _band(table[name], table[f"{name}_se"], np.concatenate(largest[name]), level) for name in columns}


def _band(means: pd.Series, errors: pd.Series, largest: NDArray[np.float64], level: float) -> Band:
    mean, error = means.to_numpy(), errors.to_numpy()
    half_width = np.where(np.isfinite(mean) & np.isfinite(error), 0.0, np.nan)
    uncertain = varies(mean, error)
    half_width[uncertain] = np.quantile(largest, level, method="higher") * error[uncertain]
    return Band(mean - half_width, mean + half_width)
