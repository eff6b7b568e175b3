"""Angles and distances between the features of two models, example by example.

All are computed from norms and from the norm of a difference, not from inner products: of models that are close to each
other these would leave no digit of 1 minus the cosine.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

INFINITE = float("inf")


def as_rows(values: Sequence[Tensor]) -> list[Tensor]:
    """Return features as matrices, shape [n, d], with their entries in one order for all."""
    if values and values[0].ndim > 2 and not values[0].is_contiguous():
        # With the channels next to each other in memory this copies nothing.
        values = [value.movedim(1, -1) for value in values]
    return [value.reshape(len(value), -1) for value in values]


def norms(rows: Tensor) -> Tensor:
    """Return the L2 norm of each row in float64."""
    return torch.linalg.vector_norm(exact(rows), dim=1).double()


def directions(rows: Tensor, lengths: Tensor) -> Tensor:
    """Return rows divided by their norms; 0 where these are 0."""
    return rows / torch.where(lengths == 0, 1.0, lengths)[:, None].to(rows)


def exact(values: Tensor) -> Tensor:
    """Return values in a type that can hold their sums."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def angular_gap(first: Tensor, second: Tensor, distance: Tensor) -> Tensor:
    """Return 1 minus the cosine of two vectors from their norms and that of their difference.

    It is 0 where both vectors are 0, and 1 where one is.
    """
    product = first * second
    gap = (distance.square() - (first - second).square()) / (2 * product)
    one = torch.ones_like(gap)
    gap = torch.where(product == 0, torch.where(first == second, 0 * one, one), gap)
    return gap.clamp(0, 2)


def coefficient(first: Tensor, second: Tensor, distance: Tensor) -> Tensor:
    """Return the factor by which the second vector comes closest to the first, from norms as above.

    It is 1 where both vectors are 0, and infinite where the second is.
    """
    square = second.square()
    factor = (first.square() + square - distance.square()) / (2 * square)
    return torch.where(second == 0, torch.where(first == 0, 1.0, INFINITE), factor)


def relative_distance(first: Tensor, second: Tensor, distance: Tensor) -> Tensor:
    """Return the squared distance over the product of the norms.

    It is 0 where both vectors are 0, and infinite where one is.
    """
    product = first * second
    ratio = distance.square() / product
    return torch.where(product == 0, torch.where(first == second, 0.0, INFINITE), ratio)
