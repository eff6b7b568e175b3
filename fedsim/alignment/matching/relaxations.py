"""Relaxed permutations: doubly stochastic matrices, of which a place takes a share of several units.

A relaxation is a dict of matrices, ``{name: matrix}`` with one float64 matrix [places, units] per order.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fedsim.alignment.matching.assignment import best_orders
from fedsim.alignment.symmetries.permutations import Axis, Permutation, Spec

Relaxation = dict[str, Tensor]


def matrices_of(permutation: Permutation) -> Relaxation:
    """Return the matrices of a permutation."""
    return {name: torch.eye(len(order), dtype=torch.float64)[order.cpu()] for name, order in permutation.items()}


def softened(matrices: Relaxation, share: float) -> Relaxation:
    """Return matrices on their way to the centre, in which each place takes the same share of each unit."""
    return {name: (1 - share) * matrix + share / len(matrix) for name, matrix in matrices.items()}


def closest(spec: Spec, matrices: Mapping[str, Tensor]) -> Permutation:
    """Return the permutation of an architecture with the largest sum of entries of the matrices.

    Raises
    ------
    ValueError
        If an entry is not finite.
    """
    permutation: Permutation = {}
    for symmetry in spec.symmetries:
        gains = {name: matrices[name].detach().cpu().double().numpy() for name in symmetry.widths}
        permutation |= best_orders(symmetry, gains)
    return permutation


def moved_by(value: Tensor, axes: tuple[Axis, ...], matrices: Relaxation, dimensions: Collection[int]) -> Tensor:
    """Return a parameter whose units are mixed by matrices along some of its dimensions; it is differentiable."""
    for dimension in dimensions:
        if any(segment.order in matrices for segment in axes[dimension]):
            sizes = [segment.size for segment in axes[dimension]]
            parts = list(value.split(sizes, dimension))
            for place, segment in enumerate(axes[dimension]):
                if segment.order in matrices:
                    rows = parts[place].movedim(dimension, 0)
                    matrix = matrices[segment.order].to(rows)
                    mixed = matrix @ rows.reshape(len(matrix), -1)
                    parts[place] = mixed.reshape(rows.shape).movedim(0, dimension)
            value = torch.cat(parts, dimension)
    return value
