"""The permutation that brings one model closest to another, found from their parameters alone."""

import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedsim.alignment.matching.assignment import best_orders
from fedsim.alignment.matching.rotating import best_turns
from fedsim.alignment.symmetries.norms import check_absorbed
from fedsim.alignment.symmetries.permutations import (
    Permutation,
    Spec,
    axes_of,
    compose,
    identity,
    orders_of,
    permute,
)
from fedsim.models.params import Params

# A smaller increase of the objective, relative to the largest possible value for two models, is rounding.
TOLERANCE = 1e-12
# With rotations, which gain a little forever, a smaller one is taken, but is no reason to visit other symmetries again.
WORTH = 1e-4


@dataclass(frozen=True)
class Matching:
    """The permutation that a search found, and how well it fits.

    Parameters
    ----------
    permutation
        Permutation with all orders of the architecture.
    objective
        Sum of products of the reference's parameters with the permuted ones, at the start of the search and after each
        change; it never decreases.
    gains
        Whether the objective has risen by more than rounding, and with rotations, which gain a little forever, by more
        than a ten-thousandth of the largest possible value: by enough to match others with the result again.
    """

    permutation: Permutation
    objective: list[float]
    gains: bool


def match_weights(
    spec: Spec,
    reference: Params,
    params: Params,
    *,
    rng: np.random.Generator,
    start: Permutation | None = None,
    sweeps: int = 100,
) -> Matching:
    """Search for the permutation of a model with the smallest squared distance to a reference: weight matching.

    With the rotations of a spec of `rotation_spec`, models are rotated too.

    Parameters
    ----------
    spec
        Symmetries to use.
    reference, params
        Whole models or parts of them. Entries that both have count, except running statistics and buffers that follow
        no order, such as masks; orders that none of these entries follows do not change.
    rng
        Stream for the order in which symmetries are visited in each sweep.
    start
        Permutation to start from; orders that it does not contain start with all units in place. Default: all units in
        place, or a first guess if that is better, which matches symmetries one after the other, using only entries
        whose other orders are already matched, starting with the symmetry that has most of them.
    sweeps
        Largest number of sweeps, 0 to return the start; the search ends when no symmetry has a better assignment.

    Raises
    ------
    ValueError
        If the architecture lacks an entry or has it with another shape, an entry is not finite, ``sweeps`` is negative,
        or a norm has a scale that must be absorbed before the residual stream is rotated.

    Notes
    -----
    Algorithm 1 of the paper, in float64, exactly if ``start`` is the `identity`. Without the guess a permuted copy of a
    transformer is often not recovered: what is matched before the residual stream fits a wrong order of it, and then
    keeps it there. The assignment of a symmetry is optimal given those of all others, so the result is a local optimum.
    If a parameter follows one symmetry along two dimensions, as recurrent weights do, its products are quadratic in the
    assignment: as in the authors' code, each dimension is assigned while the other is fixed; if this would not raise
    the objective, the assignment by all other parameters is tried. Rotations and places of heads, and rotations of the
    residual stream, maximise the same objective exactly, given all others; the search ends once visits gain less than a
    ten-thousandth of the largest possible value.

    References
    ----------
    Ainsworth et al. 2023, Git Re-Basin: merging models modulo permutation symmetries, arXiv 2209.04836. Rotations:
    Tran et al. 2026, Functional equivalence in attention, arXiv 2606.17830; Theus et al. 2025, Generalized linear mode
    connectivity for transformers, arXiv 2506.22712.
    """
    if sweeps < 0:
        raise ValueError(f"sweeps = {sweeps} must be at least 0; 0 returns the start")
    check_absorbed(params, spec.norms)
    check_absorbed(reference, spec.norms, multiple=True)
    search = _Search(spec, counted(spec, reference, params), counted(spec, params, reference), start or {})
    if start is None:
        search.begin_()
    for _ in range(sweeps):
        if not search.unsettled:
            break
        for symmetry in rng.permutation(len(spec.symmetries)):
            search.visit_(int(symmetry))
    return Matching(search.permutation, search.objective, search.gains)


def counted(spec: Spec, params: Params, keys: Container[str]) -> Params:
    """Return, in float64, those of some entries that determine which units belong together; gates without their mean.

    Raises
    ------
    ValueError
        If the architecture lacks an entry or has it with another shape, or an entry is not finite.
    """
    kept, left_out = {}, spec.statistics | spec.constants
    for key, value in params.items():
        if key in keys and key not in left_out and value.is_floating_point():
            shape = tuple(sum(segment.size for segment in axis) for axis in axes_of(key, value, spec))
            if tuple(value.shape) != shape:
                raise ValueError(f"{key} has the shape {tuple(value.shape)}, that of the architecture is {shape}")
            if not value.isfinite().all():
                raise ValueError(f"{key} has an entry that is not finite; match models that have not diverged")
            kept[key] = value.detach().double()
            if key in spec.gates:
                kept[key] = kept[key] - kept[key].mean(0)
    return kept


@dataclass(frozen=True)
class Use:
    """Part of a parameter that follows an order."""

    key: str
    dimension: int
    start: int
    size: int
    order: str
    units: int

    def part(self, params: Params) -> Tensor:
        """Return the part."""
        return params[self.key].narrow(self.dimension, self.start, self.size)

    def rows(self, params: Params) -> Tensor:
        """Return the entries of each unit, shape [units, ...]."""
        return self.part(params).movedim(self.dimension, 0).reshape(self.units, -1)

    def within(self, spec: Spec) -> set[str]:
        """Return the orders that the entries within a row follow."""
        return orders_of(axis for place, axis in enumerate(spec.axes[self.key]) if place != self.dimension)


class _Search:
    """Coordinate ascent on a model that is permuted along the way, so that each visit finds a change of its orders."""

    def __init__(self, spec: Spec, reference: Params, params: Params, start: Permutation) -> None:
        self._spec, self._reference = spec, reference
        self.permutation = identity(spec) | start
        self._params = permute(params, spec, self.permutation)
        self._products = self._multiplied(self._params)
        self.objective = [math.fsum(self._products.values())]
        largest = sum(float(value.norm() * params[key].norm()) for key, value in reference.items())
        self._least = TOLERANCE * largest
        self._worth = WORTH * largest if spec.has_rotations else self._least
        self._uses = [list(uses_of(spec, symmetry.widths, reference)) for symmetry in spec.symmetries]
        # Symmetries whose gains have changed since they were last visited.
        self.unsettled = {number for number, uses in enumerate(self._uses) if uses}

    def begin_(self) -> None:
        """Match all symmetries, each by entries whose other orders are matched already, if it raises the objective."""
        whole: Permutation = {}
        params = self._params
        unmatched = {number: uses for number, uses in enumerate(self._uses) if uses}
        while unmatched:
            sure = {
                number: [use for use in uses if use.within(self._spec) <= whole.keys()]
                for number, uses in unmatched.items()
            }
            entries = {n: sum(use.part(params).numel() / use.units for use in uses) for n, uses in sure.items()}
            surest = max(entries, key=entries.__getitem__)
            change = self._best(surest, sure[surest], params)
            params = params | permute(self._following(params, change), self._spec, change)
            whole |= change
            del unmatched[surest]
        self._take_(whole)

    def visit_(self, symmetry: int) -> None:
        """Give a symmetry a better assignment, if there is one."""
        if symmetry in self.unsettled:
            self.unsettled.remove(symmetry)
            before = self.objective[-1]
            taken = any(self._take_(change) for change in self._changes(symmetry))
            if taken and self.objective[-1] - before > self._worth:
                self.unsettled |= self._affected(symmetry)

    @property
    def gains(self) -> bool:
        """Whether all changes together are worth visiting others again."""
        return self.objective[-1] - self.objective[0] > self._worth

    def _changes(self, symmetry: int) -> Iterator[Permutation]:
        """Yield the best change, or, if products are quadratic in it, two changes that may be better."""
        uses = self._uses[symmetry]
        yield self._best(symmetry, uses, self._params)
        quadratic = {use.key for use in uses if any(_meet(use, other) for other in uses)}
        if quadratic:  # the other dimension of these may still be wrong
            yield self._best(symmetry, [use for use in uses if use.key not in quadratic], self._params)

    def _best(self, symmetry: int, uses: Iterable[Use], params: Params) -> Permutation:
        sizes, chosen = self._spec.sizes, self._spec.symmetries[symmetry]
        gains = {order: np.zeros((sizes[order],) * 2) for order in chosen.widths}
        for use in uses:
            gains[use.order] += (use.rows(self._reference) @ use.rows(params).T).cpu().numpy()
        return best_turns(chosen, gains) if chosen.rotations else best_orders(chosen, gains)

    def _take_(self, change: Permutation) -> bool:
        """Make a change if it raises the objective, and return whether it did."""
        params = permute(self._following(self._params, change), self._spec, change)
        products = self._products | self._multiplied(params)
        objective = math.fsum(products.values())
        if objective - self.objective[-1] <= self._least:
            return False
        self._params, self._products = self._params | params, products
        self.objective.append(objective)
        self.permutation |= compose({order: self.permutation[order] for order in change}, change)
        return True

    def _following(self, params: Params, change: Permutation) -> Params:
        axes = self._spec.axes
        return {key: value for key, value in params.items() if orders_of(axes[key]) & change.keys()}

    def _multiplied(self, params: Params) -> dict[str, float]:
        return {key: float(self._reference[key].flatten() @ value.flatten()) for key, value in params.items()}

    def _affected(self, symmetry: int) -> set[int]:
        """Return the symmetries, possibly including itself, whose gains depend on the assignment of one."""
        own = self._uses[symmetry]
        return {
            number for number, uses in enumerate(self._uses) if any(_meet(use, other) for use in uses for other in own)
        }


def uses_of(spec: Spec, orders: Iterable[str], keys: Container[str]) -> Iterator[Use]:
    """Yield the parts of some entries that follow some orders."""
    for order in orders:
        for key, dimension in spec.uses(order):
            if key in keys:
                start = 0
                for segment in spec.axes[key][dimension]:
                    if segment.order == order:
                        yield Use(key, dimension, start, segment.size, order, segment.size // segment.repeat)
                    start += segment.size


def _meet(use: Use, other: Use) -> bool:
    """Whether two orders are followed along two dimensions of one parameter."""
    return use.key == other.key and use.dimension != other.dimension
