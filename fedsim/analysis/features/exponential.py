"""Exponentially weighted features: what mixed models of disjoint hidden units compute, and whether two models are such.

Ito et al. 2026, layer-wise exponentially weighted connectivity of wide networks.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from fedsim.analysis.features.gaps import angular_gap, as_rows, norms
from fedsim.analysis.features.sites import Site
from fedsim.analysis.features.sources import Sources
from fedsim.analysis.features.walks import Values
from fedsim.analysis.mixing.mixes import Mix, Source, source_of

# The cosine of relu((a + b) / 2) and (relu(a) + relu(b)) / 2 for independent standard normal a and b.
NO_STRUCTURE = (
    math.sqrt(1 / 2)
    / (2 * math.pi)
    * (math.sin(math.pi / 4) + 3 * math.pi / 4 * math.cos(math.pi / 4))
    / math.sqrt((1 + 1 / math.pi) / 16)
)
COLUMNS = ("exponential", "exponential_shuffled", "reciprocal")


class Exponential:
    """Quantities of a layer for a batch and each mix, a value per example, shape [n], float64.

    Parameters
    ----------
    weights
        The models' weights.
    depths
        Number of weighted sums up to each place; missing if it is not known.
    seed
        Seed of the order of shuffled units, which is the same in every batch.
    """

    def __init__(self, weights: Sources, depths: Mapping[int, int], seed: int) -> None:
        self._weights, self._depths, self._seed = weights, depths, seed

    def of_mix(self, site: Site, mix: Mix, of: Mapping[Source, Values]) -> list[Tensor]:
        """Return two angular gaps and a ratio.

        The gaps are those between the mixed model's features and ``(1 - t) ** l`` times the base's plus ``t ** l``
        times the other's, and the same with the other's units in random order. The ratio is that of the norms of the
        other's weights times the base's inputs, over the base's weights times these: 0 for disjoint units.
        """
        mixed, base, other = (of[s] for s in (source_of(mix.base, mix.other, mix.t), mix.base, mix.other))
        depth = self._depths.get(site.place)
        if depth is None:
            gaps = [torch.full((len(mixed.features),), torch.nan, dtype=torch.float64)] * 2
        else:
            weights = (1 - mix.t) ** depth, mix.t**depth
            gaps = [
                self._gap(mixed, base, each, weights)
                for each in (other.features, self._shuffled(other.features, site.axis))
            ]
        return [*gaps, self._ratio(site, mix, base)]

    @staticmethod
    def _gap(mixed: Values, base: Values, other: Tensor, weights: tuple[float, float]) -> Tensor:
        expected = weights[0] * base.features + weights[1] * other
        found, wanted = as_rows([mixed.features, expected])
        # Of two vectors of very different lengths, the directions alone count.
        lengths = norms(found), norms(wanted)
        units = [
            row / torch.where(n == 0, 1.0, n)[:, None].to(row) for row, n in zip((found, wanted), lengths, strict=True)
        ]
        ones = [(length > 0).double() for length in lengths]
        return angular_gap(ones[0], ones[1], norms(units[0] - units[1]))

    def _shuffled(self, features: Tensor, axis: int) -> Tensor:
        order = np.random.default_rng(self._seed).permutation(features.shape[axis])
        return features.index_select(axis, torch.from_numpy(order).to(features.device))

    def _ratio(self, site: Site, mix: Mix, base: Values) -> Tensor:
        if site.module is None:
            return torch.full((len(base.features),), torch.nan, dtype=torch.float64)
        own, foreign = (
            norms(as_rows([_apply(site.module, self._weights.entry(site.weight, state), base.argument)])[0])
            for state in (mix.base, mix.other)
        )
        return torch.where(own == 0, torch.inf, foreign / own)  # which means leave out


def columns_of(means: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return the columns of mixes, from the means of `Exponential.of_mix`, shape [mixes, 3]."""
    gap, shuffled, ratio = means.T
    return {"exponential": 1 - gap, "exponential_shuffled": 1 - shuffled, "reciprocal": ratio}


def _apply(module: nn.Module, weight: Tensor, argument: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return linear(argument, weight)
    return module._conv_forward(argument, weight, None)  # type: ignore[operator]
