"""Frank-Wolfe steps that bring relaxed permutations of several models into one universe."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, product
from typing import NamedTuple

import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from fedsim.alignment.matching.assignment import best_orders
from fedsim.alignment.matching.relaxations import Relaxation, matrices_of, moved_by
from fedsim.alignment.matching.weight_matching import uses_of
from fedsim.alignment.symmetries.permutations import Permutation, Spec, positions
from fedsim.models.params import Params

# Dimensions of a parameter, in order.
Dimensions = tuple[int, ...]


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
        Its entries that determine which units belong together, in float64.
    matrices
        The relaxed permutations, one for each order of the architecture.
    """

    def __init__(self, spec: Spec, params: Params, matrices: Relaxation) -> None:
        self._spec, self.matrices = spec, matrices
        # Each parameter, moved along all subsets of those of its dimensions that follow an order.
        self._moved = {
            key: {some: moved_by(value, spec.axes[key], matrices, some) for some in _subsets(_ordered(spec, key))}
            for key, value in params.items()
        }

    @property
    def params(self) -> Params:
        """The entries of the moved model."""
        return {key: moved[_ordered(self._spec, key)] for key, moved in self._moved.items()}

    def gradient(self, others: Params) -> Relaxation:
        """Return the derivative, by the matrices, of the sum of products with others, which are given."""
        sizes = self._spec.sizes
        gradient = {order: torch.zeros(size, size, dtype=torch.float64) for order, size in sizes.items()}
        for use in uses_of(self._spec, sizes, others):
            rest = tuple(each for each in _ordered(self._spec, use.key) if each != use.dimension)
            gradient[use.order] += (use.rows(others) @ use.rows({use.key: self._moved[use.key][rest]}).T).cpu()
        return gradient

    def coefficients(self, key: str, target: Permutation) -> list[Tensor]:
        """Return what ``t ** m * (1 - t) ** (k - m)`` weighs, for m up to k, a step of length t towards a permutation.

        The k are the dimensions that follow an order: each of them moves by a share t.
        """
        return self._terms(key, _ordered(self._spec, key), target)

    def step_(self, target: Permutation, t: float) -> None:
        """Move by a share t towards a permutation."""
        for key, moved in self._moved.items():
            terms = {some: self._terms(key, some, target) for some in moved}
            self._moved[key] = {some: combined(each, t) for some, each in terms.items()}
        ends = matrices_of(target)
        self.matrices = {name: (1 - t) * matrix + t * ends[name] for name, matrix in self.matrices.items()}

    def _terms(self, key: str, dimensions: Dimensions, target: Permutation) -> list[Tensor]:
        axes, moved = self._spec.axes[key], self._moved[key]
        terms: list[Tensor] = []
        for count in range(len(dimensions) + 1):
            parts = []
            for chosen in combinations(dimensions, count):
                part = moved[tuple(each for each in dimensions if each not in chosen)]
                for dimension in chosen:
                    part = part.index_select(dimension, positions(axes[dimension], target).to(part.device))
                parts.append(part)
            terms.append(sum(parts[1:], start=parts[0]))
        return terms


def step_of(models: Sequence[RelaxedModel], targets: Sequence[Permutation]) -> Step:
    """Return the step with the largest objective on the way of all models to permutations.

    The objective is a polynomial in the length of the step, of degree 4 if parameters follow two orders: its maximum
    is exact.
    """
    total = Polynomial([0.0])
    for key in models[0].params:
        terms = [model.coefficients(key, target) for model, target in zip(models, targets, strict=True)]
        # Flat, so that all inner products are one matrix product.
        rows = [torch.stack([term.flatten() for term in each]) for each in terms]
        whole = sum(rows[1:], start=rows[0])
        gram = whole @ whole.T - sum(each @ each.T for each in rows)
        for one, other in product(range(len(gram)), repeat=2):
            total += float(gram[one, other]) / 2 * _weight(one + other, 2 * len(gram) - 2)
    slope = total.deriv()
    roots: list[complex] = slope.roots().tolist()
    inner = [root.real for root in roots if abs(root.imag) < 1e-9 and 0 < root.real < 1]
    value, t = max((float(total(t)), t) for t in (0.0, 1.0, *inner))
    return Step(t, value, float(slope(0)))


def objective_of(models: Sequence[Params]) -> float:
    """Return the sum of the products of the entries of two models, over all pairs of models."""
    pairs = combinations(models, 2)
    return sum(float(one[key].flatten() @ other[key].flatten()) for one, other in pairs for key in one)


def targets_of(spec: Spec, models: Sequence[RelaxedModel]) -> list[Permutation]:
    """Return, for each model, the permutation in which the objective rises fastest."""
    everyone = [model.params for model in models]
    total = {key: sum((each[key] for each in everyone[1:]), start=value) for key, value in everyone[0].items()}
    targets = []
    for model, own in zip(models, everyone, strict=True):
        gradient = model.gradient({key: value - own[key] for key, value in total.items()})
        target: Permutation = {}
        for symmetry in spec.symmetries:
            target |= best_orders(symmetry, {order: gradient[order].numpy() for order in symmetry.widths})
        targets.append(target)
    return targets


def combined(terms: Sequence[Tensor], t: float) -> Tensor:
    """Return a parameter after a step of length t, from its coefficients."""
    last = len(terms) - 1
    parts = [t**m * (1 - t) ** (last - m) * term for m, term in enumerate(terms)]
    return sum(parts[1:], start=parts[0])


@cache
def _weight(power: int, last: int) -> Polynomial:
    """Return ``t ** power * (1 - t) ** (last - power)``."""
    return Polynomial([0.0, 1.0]) ** power * Polynomial([1.0, -1.0]) ** (last - power)


def _ordered(spec: Spec, key: str) -> Dimensions:
    return tuple(d for d, axis in enumerate(spec.axes[key]) if any(each.order is not None for each in axis))


def _subsets(dimensions: Dimensions) -> Iterator[Dimensions]:
    for count in range(len(dimensions) + 1):
        yield from combinations(dimensions, count)
