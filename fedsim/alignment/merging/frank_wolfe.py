"""Frank-Wolfe steps that bring relaxed permutations of several models into one universe."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import Polynomial
from numpy.typing import NDArray
from torch import Tensor

from fedsim.alignment.matching.assignment import best_orders
from fedsim.alignment.matching.relaxations import Relaxation, moved_by
from fedsim.alignment.matching.weight_matching import uses_of
from fedsim.alignment.symmetries.permutations import Axis, Permutation, Spec, positions
from fedsim.models.params import Params

# Dimensions of a parameter, in order.
Dimensions = tuple[int, ...]
# The entry of an axis that comes to each of its places.
Sources = Mapping[Axis, Tensor]


class Step(NamedTuple):
    """Where a step of all models ends.

    Parameters
    ----------
    t
        Its length, 1 to arrive at the permutations.
    value
        The objective there.
    slope
        Derivative of the objective by t where the step begins.
    """

    t: float
    value: float
    slope: float


class RelaxedModel:
    """A model whose units are mixed by relaxed permutations.

    Parameters
    ----------
    params
        Its entries that determine which units belong together. What is computed of them keeps their precision.
    matrices
        The relaxed permutations, one for each order of the architecture.
    """

    def __init__(self, spec: Spec, params: Params, matrices: Relaxation) -> None:
        self._spec, self.matrices = spec, matrices
        self._ordered = {key: _ordered(spec, key) for key in params}
        self._uses = list(uses_of(spec, spec.sizes, params))
        self._axes = {spec.axes[key][dimension] for key, ordered in self._ordered.items() for dimension in ordered}
        self._prices = [np.zeros(symmetry.blocks) for symmetry in spec.symmetries]
        # Each parameter, moved along all subsets of those of its dimensions that follow an order.
        self._moved = {
            key: {some: moved_by(value, spec.axes[key], matrices, some) for some in _subsets(self._ordered[key])}
            for key, value in params.items()
        }

    @property
    def params(self) -> Params:
        """The entries of the moved model."""
        return {key: moved[self._ordered[key]] for key, moved in self._moved.items()}

    def gradient(self, others: Params) -> Relaxation:
        """Return the derivative, by the matrices, of the sum of products with others, which are given."""
        gradient = {order: torch.zeros(size, size, dtype=torch.float64) for order, size in self._spec.sizes.items()}
        for use in self._uses:
            rest = tuple(each for each in self._ordered[use.key] if each != use.dimension)
            gradient[use.order] += (use.rows(others) @ use.rows({use.key: self._moved[use.key][rest]}).T).cpu()
        return gradient

    def best(self, gradient: Relaxation) -> Permutation:
        """Return the permutation with the largest sum of products with the gradient."""
        target: Permutation = {}
        for symmetry, prices in zip(self._spec.symmetries, self._prices, strict=True):
            gains = {order: gradient[order].numpy() for order in symmetry.widths}
            target |= best_orders(symmetry, gains, prices)
        return target

    def coefficients(self, target: Permutation, keys: Iterable[str]) -> Iterator[list[Tensor]]:
        """Yield what ``t ** m * (1 - t) ** (k - m)`` weighs, for m up to k, a step of length t towards a permutation.

        One list for each of these parameters; the k are its dimensions that follow an order: each moves by a share t.
        """
        sources = self._sources(target)
        for key in keys:
            yield self._terms(key, sources)

    def step_(self, target: Permutation, t: float) -> None:
        """Move by a share t towards a permutation."""
        sources = self._sources(target)
        for key, moved in self._moved.items():
            for dimension in self._ordered[key]:
                source = sources[self._spec.axes[key][dimension]]
                for some in moved:
                    if dimension in some:
                        still = moved[tuple(each for each in some if each != dimension)]
                        moved[some].lerp_(_taken(still, dimension, source), t)
        mixed = {name: (1 - t) * matrix for name, matrix in self.matrices.items()}
        for name, matrix in mixed.items():
            matrix[torch.arange(len(matrix)), target[name]] += t
        self.matrices = mixed

    def _sources(self, target: Permutation) -> Sources:
        return {axis: positions(axis, target) for axis in self._axes}

    def _terms(self, key: str, sources: Sources) -> list[Tensor]:
        axes, moved, dimensions = self._spec.axes[key], self._moved[key], self._ordered[key]
        terms: list[Tensor] = []
        for count in range(len(dimensions) + 1):
            parts = []
            for chosen in combinations(dimensions, count):
                part = moved[tuple(each for each in dimensions if each not in chosen)]
                for dimension in chosen:
                    part = _taken(part, dimension, sources[axes[dimension]])
                parts.append(part)
            terms.append(sum(parts[1:], start=parts[0]))
        return terms


def step_of(models: Sequence[RelaxedModel], targets: Sequence[Permutation]) -> Step:
    """Return the step with the largest objective on the way of all models to permutations.

    The objective is a polynomial in the length of the step, of degree 4 if parameters follow two orders: its maximum
    is exact.
    """
    keys = list(models[0].params)  # members may have them in another order
    ways = [model.coefficients(target, keys) for model, target in zip(models, targets, strict=True)]
    weighed: dict[int, NDArray[np.float64]] = {}
    for _ in keys:
        gram = _products_of_pairs(map(next, ways)).cpu().numpy()
        last = 2 * len(gram) - 2
        found = weighed.setdefault(last, np.zeros(last + 1))
        for one, other in product(range(len(gram)), repeat=2):
            found[one + other] += gram[one, other]
    total = Polynomial([0.0])
    for last, found in weighed.items():
        for power, value in enumerate(found.tolist()):
            total += value * _weight(power, last)
    slope = total.deriv()
    roots: list[complex] = slope.roots().tolist()
    inner = [root.real for root in roots if abs(root.imag) < 1e-9 and 0 < root.real < 1]
    value, t = max((float(total(t)), t) for t in (0.0, 1.0, *inner))
    return Step(t, value, float(slope(0)))


def objective_of(models: Sequence[Params]) -> float:
    """Return the sum of the products of the entries of two models, over all pairs of models."""
    return math.fsum(float(_products_of_pairs([[model[key]] for model in models])) for key in models[0])


def targets_of(models: Sequence[RelaxedModel]) -> list[Permutation]:
    """Return, for each model, the permutation in which the objective rises fastest."""
    everyone = [model.params for model in models]
    total = {key: _sum([each[key] for each in everyone]) for key in everyone[0]}
    targets = []
    for model, own in zip(models, everyone, strict=True):
        others = {key: (value - own[key]).to(own[key]) for key, value in total.items()}
        targets.append(model.best(model.gradient(others)))
    return targets


def _products_of_pairs(models: Iterable[Sequence[Tensor]]) -> Tensor:
    """Return the sum over all pairs of models of the inner products of their terms, float64 [terms, terms]."""
    remaining = iter(models)
    # Flat, so that all inner products are one matrix product.
    whole = torch.stack([term.flatten() for term in next(remaining)]).double()
    own, rows = whole @ whole.T, torch.empty_like(whole)
    for terms in remaining:
        for row, term in zip(rows, terms, strict=True):
            row.view_as(term).copy_(term)
        whole += rows
        own.addmm_(rows, rows.T)
    return (whole @ whole.T - own) / 2


def _sum(values: Sequence[Tensor]) -> Tensor:
    """Return a sum, in float64: in float32 it would depend on the order."""
    total = values[0].to(torch.float64, copy=True)
    for value in values[1:]:
        total += value
    return total


def _taken(value: Tensor, dimension: int, source: Tensor) -> Tensor:
    return value.index_select(dimension, source.to(value.device))


@cache
def _weight(power: int, last: int) -> Polynomial:
    """Return ``t ** power * (1 - t) ** (last - power)``."""
    return Polynomial([0.0, 1.0]) ** power * Polynomial([1.0, -1.0]) ** (last - power)


def _ordered(spec: Spec, key: str) -> Dimensions:
    return tuple(d for d, axis in enumerate(spec.axes[key]) if any(each.order is not None for each in axis))


def _subsets(dimensions: Dimensions) -> Iterator[Dimensions]:
    for count in range(len(dimensions) + 1):
        yield from combinations(dimensions, count)
