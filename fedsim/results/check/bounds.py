"""Confidence intervals of means and ratios over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy  # its parts are imported when they are used
from numpy.typing import ArrayLike

from fedsim.results.report.comparing.statistics import CONFIDENCE, interval


@dataclass(frozen=True)
class Bounds:
    """A mean over seeds, and the ends of its 95 % interval; these are NaN with one seed."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def alone(self) -> Self:
        """Return the mean as if it were known exactly."""
        return type(self)(self.value, self.value, self.value)

    def __str__(self) -> str:
        interval = f" [{self.low:.4f}, {self.high:.4f}]" if self.low < self.high else ""
        return f"{self.value:8.4f}{interval:20}"


def of_mean(values: Sequence[float]) -> Bounds:
    """Return the mean of one value of each seed with its interval by Student's t distribution."""
    found = interval(values)
    if math.isnan(found.half_width):
        return Bounds(found.mean)
    return Bounds(found.mean, found.mean - found.half_width, found.mean + found.half_width)


def of_ratio(values: ArrayLike, references: ArrayLike) -> Bounds:
    """Return the ratio of the means of values and of references, paired by seed, with its interval.

    The interval holds each ratio r for which a paired t-test over the seeds, of the values against r times the
    references, has p of at least 0.05. It is unbounded if the references' mean cannot be told from 0.

    References
    ----------
    Fieller 1954, Some problems in interval estimation, Journal of the Royal Statistical Society B 16.
    """
    numbers = np.array([values, references], dtype=np.float64)
    above, below = (float(mean) for mean in numbers.mean(axis=1))
    ratio = above / below if below else math.nan
    seeds = numbers.shape[1]
    if seeds < 2 or math.isnan(ratio):
        return Bounds(ratio)
    quantile = float(scipy.special.stdtrit(seeds - 1, (1 + CONFIDENCE) / 2))
    (var_above, covariance), (_, var_below) = np.cov(numbers) * quantile**2 / seeds
    # The ends solve (above - r below)^2 = var_above - 2 r covariance + r^2 var_below.
    a, b, c = below**2 - var_below, above * below - covariance, above**2 - var_above
    if a <= 0:
        return Bounds(ratio, -math.inf, math.inf)
    width = math.sqrt(max(0.0, b**2 - a * c))
    return Bounds(ratio, (b - width) / a, (b + width) / a)
