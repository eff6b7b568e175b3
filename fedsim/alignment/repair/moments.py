"""Mean and standard deviation of each channel, for values that arrive in pieces."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Number of examples that are converted to float64 at a time.
ROWS = 128


@dataclass(frozen=True)
class Moments:
    """Moments of each channel over the values so far.

    Parameters
    ----------
    count
        Number of values of each channel; positions count like examples.
    mean
        Mean of each channel, shape [channels], float64.
    squares
        Sum of the squared differences from the mean, shape [channels], float64.
    resolution
        Relative precision of the values' dtype.
    """

    count: int
    mean: Tensor
    squares: Tensor
    resolution: float

    @property
    def std(self) -> Tensor:
        """Standard deviation of the values, normalised by their number."""
        return (self.squares / self.count).sqrt()

    @property
    def is_constant(self) -> Tensor:
        """Whether each channel varies by rounding only, shape [channels]."""
        std = self.std
        return std <= 100 * self.resolution * torch.maximum(self.mean.abs(), std.max())

    def and_also(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of values together."""
        count, step = self.count + other.count, other.mean - self.mean
        squares = self.squares + other.squares + step**2 * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), squares, self.resolution)


def moments_of(value: Tensor, dimension: int) -> Moments:
    """Return the moments of each channel.

    Parameters
    ----------
    value
        Values, shape [n, ...].
    dimension
        Dimension of the channels, not the first.
    """
    total = None
    for piece in value.split(ROWS):
        rows = piece.movedim(dimension, -1).flatten(0, -2).double()
        mean = rows.mean(0)
        part = Moments(len(rows), mean, (rows - mean).square().sum(0), torch.finfo(value.dtype).eps)
        total = part if total is None else total.and_also(part)
    assert total is not None
    return total
