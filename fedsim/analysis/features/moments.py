"""Means and standard deviations over examples that come in batches."""

from dataclasses import dataclass
from functools import reduce
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """For each of several quantities: the number of values, their mean, and the sum of squared differences to it.

    Infinite values are left out; a NaN makes the mean NaN.
    """

    n: Vector
    mean: Vector
    squares: Vector

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Return the moments of quantities, shape [quantities, examples]."""
        array = values.cpu().numpy()
        counted = ~np.isinf(array)
        n = counted.sum(1).astype(np.float64)
        mean = np.where(counted, array, 0).sum(1) / np.maximum(n, 1)
        differences = np.where(counted, array, mean[:, None]) - mean[:, None]
        return cls(n, mean, np.square(differences).sum(1))

    def __add__(self, other: Self) -> Self:
        n = self.n + other.n
        share = other.n / np.maximum(n, 1)
        difference = other.mean - self.mean
        mean = self.mean + difference * share
        return type(self)(n, mean, self.squares + other.squares + np.square(difference) * self.n * share)

    @property
    def means(self) -> Vector:
        """Means, NaN of no values."""
        return np.where(self.n > 0, self.mean, np.nan)

    @property
    def deviations(self) -> Vector:
        """Standard deviations, NaN for fewer than two values."""
        return np.where(self.n > 1, np.sqrt(self.squares / np.maximum(self.n - 1, 1)), np.nan)


def total(parts: list[Moments]) -> Moments:
    """Return the moments of all batches, added in their order."""
    return reduce(lambda first, second: first + second, parts)
