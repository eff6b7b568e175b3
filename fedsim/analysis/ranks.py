"""Rank correlations; neither torch nor scipy is imported here."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

FEWEST = 3  # points; two have equal or opposite ranks
ROUNDING = 1e-12  # of the largest; sums of the same numbers in another order are as close


def rank_correlation(one: ArrayLike, other: ArrayLike) -> float:
    """Return Spearman's correlation, with average ranks for ties and for numbers that are equal up to rounding.

    It is NaN for fewer than three points, if a number is missing, and if all numbers of either are equal.
    """
    ranks = pd.DataFrame({"one": _rounded(one), "other": _rounded(other)}).rank()
    if len(ranks) < FEWEST or ranks.isna().any(axis=None) or (ranks.nunique() == 1).any():
        return np.nan
    return float(ranks["one"].corr(ranks["other"]))


def _rounded(values: ArrayLike) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    step = ROUNDING * np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0)
    return np.round(numbers / step) if step else numbers
