"""Exponentially weighted features: what mixed models of disjoint hidden units compute, and whether two models are such.

Ito et al. 2026, layer-wise exponentially weighted connectivity of wide networks.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.analysis.features.features import Features
from fedsim.analysis.features.gaps import angular_gap, as_rows, directions, norms
from fedsim.analysis.features.sites import Site, weighted
from fedsim.analysis.features.walks import Values
from fedsim.analysis.mixing.mixes import Mix, Source
from fedsim.analysis.mixing.names import AVERAGE

COLUMNS = ("exponential", "exponential_shuffled", "reciprocal")


class Control(NamedTuple):
    """What two vectors have in common if nothing but ReLU relates them.

    Parameters
    ----------
    cosine
        Their cosine.
    distance
        Their squared distance over the product of their norms.
    """

    cosine: float
    distance: float


def no_structure(t: float, depth: float = 1) -> Control:
    """Return the controls of relu((1 - t) a + t b) and (1 - t)^l relu(a) + t^l relu(b), for independent normal a and b.

    Both are exact in the limit of many units; for l = 1 and t = 1/2 they are 0.9304 and 0.158.

    Parameters
    ----------
    depth
        Power of the weights, l.
    """
    shares = 1 - t, t
    weights = [share**depth for share in shares]
    deviation = math.hypot(*shares)
    angles = [math.acos(min(1.0, share / deviation)) for share in shares]
    product = sum(
        weight * deviation / (2 * math.pi) * (math.sin(angle) + (math.pi - angle) * math.cos(angle))
        for weight, angle in zip(weights, angles, strict=True)
    )
    squares = deviation**2 / 2, math.hypot(*weights) ** 2 / 2 + math.prod(weights) / math.pi
    norms_product = math.sqrt(math.prod(squares))
    return Control(product / norms_product, (sum(squares) - 2 * product) / norms_product)


NO_STRUCTURE = no_structure(0.5).cosine


class Exponential:
    """Quantities of a layer for a batch and each mix, a value per example, shape [n], float64.

    Parameters
    ----------
    features
        Those that are compared, with the models' weights.
    depths
        Number of weighted sums up to each place, l, as `fedsim.analysis.features.degrees.degrees_of` finds it; missing
        where there is none or the model is no graph.
    seed
        Seed of the order of shuffled units, which is the same in every batch.
    """

    def __init__(self, features: Features, depths: Mapping[int, int], seed: int) -> None:
        self._features, self._depths, self._seed = features, depths, seed

    def depth(self, site: Site) -> float:
        """Return the number of weighted sums up to a layer; NaN if there is none."""
        return self._depths.get(site.place, math.nan)

    def of_mix(self, site: Site, mix: Mix, of: Mapping[Source, Values]) -> list[Tensor]:
        """Return two angular gaps and a ratio.

        The gaps are those between the mixed model's features and ``(1 - t) ** l`` times the base's plus ``t ** l``
        times the other's, and the same with the other's units in random order. The ratio is that of the norms of the
        other's weights times the base's inputs, over the base's weights times these: 0 for disjoint units. All are NaN
        with the average, which has every model's units, also those of the base.
        """
        if mix.other == AVERAGE:
            return [_undefined(of[mix.base].features)] * len(COLUMNS)
        mixed, base, other = (of[s] for s in (mix.source, mix.base, mix.other))
        depth = self._depths.get(site.place)
        if depth is None:
            gaps = [_undefined(mixed.features)] * 2
        else:
            weights = (1 - mix.t) ** depth, mix.t**depth
            gaps = [
                self._gap(mixed, base, each, weights) for each in (other.features, self._shuffled(site, other.before))
            ]
        return [*gaps, self._ratio(site, mix, base)]

    @staticmethod
    def _gap(mixed: Values, base: Values, other: Tensor, weights: tuple[float, float]) -> Tensor:
        expected = weights[0] * base.features + weights[1] * other
        # Of two vectors of very different lengths, the directions alone count.
        rows = [(each, norms(each)) for each in as_rows([mixed.features, expected])]
        found, wanted = (directions(*each) for each in rows)
        ones = [(lengths > 0).double() for _, lengths in rows]
        return angular_gap(ones[0], ones[1], norms(found - wanted))

    def _shuffled(self, site: Site, before: Tensor) -> Tensor:
        # Before what follows, which may move the units to another dimension.
        order = np.random.default_rng(self._seed).permutation(before.shape[site.axis])
        return self._features.finish(site, before.index_select(site.axis, torch.from_numpy(order).to(before.device)))

    def _ratio(self, site: Site, mix: Mix, base: Values) -> Tensor:
        if site.module is None:
            return _undefined(base.features)
        own, foreign = (
            norms(as_rows([weighted(site.module, self._features.weights.entry(site.weight, state), base.argument)])[0])
            for state in (mix.base, mix.other)
        )
        return torch.where(own == 0, torch.inf, foreign / own)  # which means leave out


def columns_of(means: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return the columns of mixes, from the means of `Exponential.of_mix`, shape [mixes, 3]."""
    gap, shuffled, ratio = means.T
    return dict(zip(COLUMNS, (1 - gap, 1 - shuffled, ratio), strict=True))


def _undefined(features: Tensor) -> Tensor:
    """Return a NaN for each example."""
    return features.new_full((len(features),), torch.nan, dtype=torch.float64)
