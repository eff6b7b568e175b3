"""What a mean over seeds is worth, and how alike the clients fare."""

import math
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported when they are used
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE  # p-values below it are distinguishable from chance
WORST_ONE_OF = 10
ROUNDING = 1e-12  # differences of means of equal values, summed in another order


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, and the half-width of its 95 % interval.

    Parameters
    ----------
    mean
        NaN if it is not known, such as of something that was not measured.
    half_width
        NaN if there is one seed only, which says nothing about others, or if this is no mean over seeds.
    missing
        Number of values, of clients or of a server, that are missing: these are not in the mean.
    interpolated
        Whether a run's value lies between two rounds that were evaluated.
    """

    mean: float
    half_width: float = float("nan")
    missing: int = 0
    interpolated: bool = False

    @property
    def is_known(self) -> bool:
        """Whether there is a mean."""
        return not math.isnan(self.mean)

    @property
    def is_measured(self) -> bool:
        """Whether there is a mean, or its values are all missing."""
        return self.is_known or self.missing > 0

    @property
    def has_width(self) -> bool:
        """Whether the interval's width is known."""
        return not math.isnan(self.half_width)


@dataclass(frozen=True)
class Tally:
    """How many clients are better off, over all seeds, than others that they are paired with.

    Parameters
    ----------
    missing
        Number of clients without a value in one of both.
    few
        Number of clients with few test examples among those that are counted.
    """

    better: int
    equal: int
    worse: int
    missing: int = 0
    few: int = 0
    half_width: float = float("nan")
    interpolated: bool = False

    @property
    def total(self) -> int:
        """Number of clients that are counted."""
        return self.better + self.equal + self.worse

    @property
    def mean(self) -> float:
        """Share of the clients that are better off; NaN of none."""
        return self.better / self.total if self.total else float("nan")

    @property
    def is_known(self) -> bool:
        """Whether any client is counted."""
        return self.total > 0

    @property
    def is_measured(self) -> bool:
        """Whether any client is counted, or their values are all missing."""
        return self.is_known or self.missing > 0

    @property
    def has_width(self) -> bool:
        """Whether there is an interval, which counts have not."""
        return False


Value = Interval | Tally


def interval(values: ArrayLike) -> Interval:
    """Return the mean of independent values with its interval by Student's t distribution."""
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < 2:
        return Interval(float(numbers.mean()) if len(numbers) else float("nan"))
    standard_error = float(numbers.std(ddof=1)) / np.sqrt(len(numbers))
    quantile = float(scipy.special.stdtrit(len(numbers) - 1, (1 + CONFIDENCE) / 2))
    return Interval(float(numbers.mean()), float(quantile * standard_error))


def paired_p(differences: ArrayLike) -> float:
    """Return the two-sided p-value of a t-test that paired differences have a mean of 0; NaN if there is only one.

    It is below 0.05 just where the 95 % interval of `interval` does not hold 0.
    """
    numbers = np.asarray(differences, dtype=np.float64)
    if len(numbers) < 2:
        return float("nan")
    if np.abs(numbers).max() < ROUNDING:
        return 1.0
    standard_error = float(numbers.std(ddof=1)) / np.sqrt(len(numbers))
    statistic = abs(float(numbers.mean())) / standard_error if standard_error else math.inf
    return float(2 * scipy.special.stdtr(len(numbers) - 1, -statistic))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Return p-values corrected for their number, so that the chance of any false finding among them is kept.

    Parameters
    ----------
    p_values
        P-values; one that is NaN is no test, and stays NaN.

    References
    ----------
    Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    numbers = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(len(numbers), np.nan)
    known = np.flatnonzero(~np.isnan(numbers))
    order = known[np.argsort(numbers[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(factors * numbers[order]))
    return corrected


def jain(values: ArrayLike) -> float:
    """Return Jain's fairness index: 1 if all clients have the same, 1/n if one of n has all; NaN if none has any.

    References
    ----------
    Jain, Chiu and Hawe 1984, A quantitative measure of fairness and discrimination, arXiv cs/9809099.
    """
    numbers = np.asarray(values, dtype=np.float64)
    squares = len(numbers) * float((numbers**2).sum())
    return float(numbers.sum()) ** 2 / squares if squares else float("nan")


def worst_mean(values: ArrayLike, *, higher_is_better: bool = True) -> float:
    """Return the mean over the worst tenth of the clients, rounded up."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    ordered = ordered if higher_is_better else ordered[::-1]
    return float(ordered[: -(-len(ordered) // WORST_ONE_OF)].mean())
