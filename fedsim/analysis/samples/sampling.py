"""How the examples of a measurement were drawn, which its standard errors and its confidence bands rest on."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


class Spread(NamedTuple):
    """How far values are from their means, and how far their means may be from those of the population.

    Parameters
    ----------
    mean
        Means of the values, shape [rows].
    centred, deviations
        Values minus their mean, and minus that of their stratum; shape [rows, n].
    within, between
        Squared standard error of the mean: what the choice of examples within the strata adds, and what the strata's
        shares in the data set add; shape [rows].
    freedom
        Degrees of freedom of their sum (Satterthwaite 1946, An approximate distribution of estimates of variance
        components): fewer than n where most of it is from small strata; shape [rows].
    """

    mean: Matrix
    centred: Matrix
    deviations: Matrix
    within: Matrix
    between: Matrix
    freedom: Matrix

    @property
    def error(self) -> Matrix:
        """Standard error of the mean, shape [rows]."""
        # For values that are equal within their strata, rounding can leave a sum below 0.
        return np.sqrt(np.maximum(self.within + self.between, 0))


class Resamples(NamedTuple):
    """Weights of the examples in draws of a bootstrap, with which values and squares are summed; shapes [draws, n].

    The weights of the values have mean 1 in each draw. A square counts with the square of its stratum's relative share.
    """

    of_values: NDArray[np.float32]
    of_squares: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Sampling:
    """How examples were drawn from a data set, itself drawn freely from the population that means are estimated of.

    Parameters
    ----------
    strata
        Stratum of each example, counted from 0, shape [n]; all 0 if the examples were drawn freely.
    drawn_from
        Number of examples of the data set, infinite if it has the population's share of each stratum; without a meaning
        if the examples were drawn freely.

    Notes
    -----
    With f the share of the data set that was drawn, the squared standard error of a mean is 1 - f times that of a
    stratified sample, from the variance within the strata, plus f times that of a free one: a data set of N examples
    leaves S^2 / N, and the stratified choice of n of them (1 - f) S_w^2 / n (Cochran 1977, Sampling techniques, 5 and
    12). So all examples of a data set are a free draw, and few of a large one are a plain stratified one.
    """

    strata: NDArray[np.int64]
    drawn_from: float

    @classmethod
    def freely(cls, n: int) -> Self:
        """Return the sampling of n examples that were drawn independently, or are all that there are."""
        return cls(np.zeros(n, dtype=np.int64), n)

    @classmethod
    def stratified(cls, classes: ArrayLike, drawn_from: float) -> Self:
        """Return the sampling of examples in which each class has its share of the data set.

        Strata of one example, whose spread is unknown, are joined; a single one with the smallest of the others.
        """
        _, strata, sizes = np.unique(classes, return_inverse=True, return_counts=True)
        joined = sizes == 1
        if joined.sum() == 1:
            joined |= np.arange(len(sizes)) == np.argmin(np.where(joined, len(strata), sizes))
        return cls(np.unique(np.where(joined[strata], -1, strata), return_inverse=True)[1].astype(np.int64), drawn_from)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Number of examples in each stratum."""
        return np.bincount(self.strata)

    @property
    def text(self) -> str:
        """What a table says of its sample."""
        if len(self.sizes) == 1:
            return "free"
        whole = f" of {self.drawn_from:.0f}" if np.isfinite(self.drawn_from) else ""
        return f"stratified: {len(self.strata)}{whole}"

    @cached_property
    def factors(self) -> Matrix:
        """What each example's squared deviation adds to the squared standard error of a mean, shape [n]."""
        sizes = self.sizes[self.strata]
        return sizes / np.maximum(sizes - 1, 1) / len(self.strata) ** 2

    def spread(self, values: Matrix) -> Spread:
        """Return the spread of values, shape [rows, n]; that of a single example is NaN."""
        n = len(self.strata)
        mean = values.mean(1)
        centred = values - mean[:, None]
        if n == 1:
            return Spread(mean, centred, centred, *[mean * np.nan] * 3)
        if len(self.sizes) == 1:
            freedom = np.full(len(values), n - 1.0)
            return Spread(mean, centred, centred, np.square(centred) @ self.factors, 0 * mean, freedom)
        means = centred @ self._members / self.sizes
        deviations = centred - means[:, self.strata]
        squares = np.square(deviations) @ self._members
        parts = squares * (self.sizes / (self.sizes - 1)) / n**2
        within = parts.sum(1)
        freely = (squares.sum(1) + np.square(means) @ self.sizes) / (n - 1) / n
        between = n / self.drawn_from * (freely - within)
        uncertain = np.square(parts) @ (1 / (self.sizes - 1)) + np.square(between) / (n - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = np.square(within + between) / uncertain
        return Spread(mean, centred, deviations, within, between, freedom)

    def resample(self, draws: int, stream: np.random.Generator) -> Resamples:
        """Draw the sample again: the data set's share of each stratum, and the examples within it.

        Notes
        -----
        From a stratum with m examples m - 1 are drawn, and count m / (m - 1) times: otherwise its variance would be
        too small by (m - 1) / m (Rao, Wu 1988, Resampling inference with complex survey data).
        """
        if len(self.strata) == 1:
            return Resamples(*np.ones((2, draws, 1), dtype=np.float32))
        counts = np.empty((draws, len(self.strata)), dtype=np.float32)
        for stratum, m in enumerate(self.sizes):
            drawn = stream.integers(m, size=(draws, m - 1)) + m * np.arange(draws)[:, None]
            often = np.bincount(drawn.ravel(), minlength=draws * m).reshape(draws, m)
            counts[:, self.strata == stratum] = often * (m / (m - 1))
        if len(self.sizes) == 1 or np.isinf(self.drawn_from):
            return Resamples(counts, counts)
        expected = self.sizes / self.sizes.sum()
        shares = stream.multinomial(int(self.drawn_from), expected, size=draws) / (self.drawn_from * expected)
        relative = shares.astype(np.float32)[:, self.strata]
        return Resamples(counts * relative, counts * relative**2)

    @cached_property
    def _members(self) -> Matrix:
        return (self.strata[:, None] == np.arange(len(self.sizes))).astype(np.float64)
