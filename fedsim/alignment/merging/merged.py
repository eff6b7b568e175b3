"""The members of a merge, the places of their units, and the result."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsim.alignment.matching.weight_matching import counted, match_weights
from fedsim.alignment.merging.shares import shares_of
from fedsim.alignment.symmetries.permutations import Permutation, Spec, compose, identity, invert, permute
from fedsim.models.averaging import WeightedMean
from fedsim.models.params import Params
from fedsim.models.tensors import is_same


@dataclass(frozen=True)
class Merged:
    """A merged model, and the places of its members' units in it.

    Parameters
    ----------
    params
        Weighted mean of the permuted members; integer entries are the first member's.
    permutations
        Permutation of each member, which brings its units to their places in the merged model.
    spreads
        Weighted mean of the squared distances of the permuted members from their mean, before the first sweep and after
        each; it never increases. A hierarchical merge has the final value only.
    """

    params: Params
    permutations: list[Permutation]
    spreads: list[float]

    def between(self, member: int, other: int) -> Permutation:
        """Return the permutation that brings the units of one member to the places of another's."""
        return compose(self.permutations[member], invert(self.permutations[other]))


class Members:
    """Models to merge, with their weights and the model whose order of units the merged model gets.

    Parameters
    ----------
    models
        Whole models, or the same part of each.
    weights
        One positive number per model (default: equal).
    start
        Model to match all members with first (default: the first member).

    Raises
    ------
    ValueError
        If there is no member, members have different entries, or there is not one positive weight for each.
    """

    def __init__(
        self, spec: Spec, models: Sequence[Params], weights: Sequence[float] | None, start: Params | None
    ) -> None:
        if not models:
            raise ValueError("there is no member to merge; give at least one")
        for model in models:
            if different := model.keys() ^ models[0].keys():
                raise ValueError(f"members differ in entries, e.g. {min(different)}; give the same part of each model")
        self.spec, self.models, self.start = spec, models, start
        self.shares = shares_of(models, weights)

    def matched(self, rng: np.random.Generator) -> list[Permutation]:
        """Return the permutations that bring the units of each member to the places of the start's."""
        if self.start is not None:
            return [match_weights(self.spec, self.start, model, rng=rng).permutation for model in self.models]
        first, *others = self.models
        return [identity(self.spec)] + [match_weights(self.spec, first, each, rng=rng).permutation for each in others]

    def counted(self, member: int, permutation: Permutation) -> Params:
        """Return, in float64, the entries of a permuted member that determine which units belong together."""
        model = self.models[member]
        return permute(counted(self.spec, model, model), self.spec, permutation)

    def mean(self, permutations: Sequence[Permutation]) -> Params:
        """Return, in float64, the mean of the entries that determine which units belong together."""
        mean: Params = {}
        for member, permutation in enumerate(permutations):
            own = self.counted(member, permutation)
            mean = {key: self.shares[member] * value + mean.get(key, 0) for key, value in own.items()}
        return mean

    def spread(self, mean: Params) -> float:
        """Return the mean squared distance of the permuted members from their mean."""
        return max(0.0, self._square - square(mean))

    @cached_property
    def _square(self) -> float:
        """The mean squared norm, which no permutation changes."""
        return math.fsum(share * square(self.counted(member, {})) for member, share in enumerate(self.shares))

    def merged(self, permutations: Sequence[Permutation], spreads: list[float], rng: np.random.Generator) -> Merged:
        """Return the mean of the permuted members, with its units in the places of the start's."""
        mean = WeightedMean()
        for model, share, permutation in zip(self.models, self.shares, permutations, strict=True):
            mean.add(permute(model, self.spec, permutation), share)
        params = self.models[0] | mean.result() | self._equal_constants()
        if self.start is None:
            places = invert(permutations[0])
        else:
            places = match_weights(self.spec, self.start, params, rng=rng).permutation
        return Merged(permute(params, self.spec, places), [compose(each, places) for each in permutations], spreads)

    def _equal_constants(self) -> Params:
        """Return the constants that all members have in common: a mean of infinite ones, as in masks, would be NaN."""
        first, *others = self.models
        keys = self.spec.constants & first.keys()
        return {key: first[key] for key in keys if all(is_same(each[key], first[key]) for each in others)}


def square(params: Params) -> float:
    """Return the squared norm of some entries."""
    return math.fsum(float(value.flatten() @ value.flatten()) for value in params.values())
