"""How linear the features of a layer are between models, example by example."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from fedsim.analysis.features.features import Features
from fedsim.analysis.features.gaps import angular_gap, as_rows, coefficient, directions, norms, relative_distance
from fedsim.analysis.features.sites import Site
from fedsim.analysis.features.walks import Values
from fedsim.analysis.mixing.mixes import Mix, Source
from fedsim.analysis.mixing.names import AVERAGE


class Linearity:
    """Quantities of a layer for a batch, each a value per example, shape [n], float64.

    Parameters
    ----------
    of
        Values of each model.
    """

    def __init__(self, features: Features, site: Site, of: dict[Source, Values]) -> None:
        self._features, self._site, self._of = features, site, of
        self._rows = dict(zip(of, as_rows([values.features for values in of.values()]), strict=True))
        self._norms = {source: norms(rows) for source, rows in self._rows.items()}
        self._mixed: dict[tuple[int, int, float], tuple[Tensor, Tensor]] = {}

    def of_pair(self, base: int, other: int, ts: Sequence[float]) -> list[Tensor]:
        """Return the angular gap between two models' features, and their additivity."""
        gap = angular_gap(self._norms[base], self._norms[other], norms(self._rows[base] - self._rows[other]))
        if not self._site.bends or not ts:
            return [gap, torch.full_like(gap, torch.nan)]
        largest = torch.full_like(gap, -1.0)
        for t in ts:
            before = torch.lerp(self._of[base].before, self._of[other].before, t)
            distance = self._additivity(before, *self._mix(base, other, t))
            # Where there is none at one t, those at others count.
            largest = torch.maximum(largest, torch.where(distance.isinf(), -1.0, distance))
        return [gap, torch.where(largest < 0, torch.inf, largest)]

    def of_mix(self, mix: Mix) -> list[Tensor]:
        """Return the angular gap between the mixed model's features and the mixed features, and the coefficient."""
        return self._compared(mix.source, *self._mix(mix.base, mix.other, mix.t))

    def of_average(self, shares: Sequence[float]) -> list[Tensor]:
        """Return the same two for the average of all models, the weighted mean of all pairs' gaps, and additivity."""
        features = _mean((self._rows[state] for state in range(len(shares))), shares)
        lengths = norms(features)
        gaps = self._mean_gap(shares)
        additivity = torch.full_like(gaps, torch.nan)
        if self._site.bends:
            before = _mean((self._of[state].before for state in range(len(shares))), shares)
            additivity = self._additivity(before, features, lengths)
        return [*self._compared(AVERAGE, features, lengths), gaps, additivity]

    def _compared(self, source: Source, features: Tensor, lengths: Tensor) -> list[Tensor]:
        sizes = self._norms[source], lengths, norms(self._rows[source] - features)
        return [angular_gap(*sizes), coefficient(*sizes)]

    def _mix(self, base: int, other: int, t: float) -> tuple[Tensor, Tensor]:
        """Return mixed features and their norms."""
        key = (base, other, t)
        if key not in self._mixed:
            rows = torch.lerp(self._rows[base], self._rows[other], t)
            self._mixed[key] = rows, norms(rows)
        return self._mixed[key]

    def _additivity(self, before: Tensor, features: Tensor, lengths: Tensor) -> Tensor:
        """Return the distance of mixed features from the features of mixed values before the activation."""
        like = next(iter(self._of.values())).features
        joint = as_rows([like, self._features.finish(self._site, before)])[1]
        return relative_distance(norms(joint), lengths, norms(joint - features))

    def _mean_gap(self, shares: Sequence[float]) -> Tensor:
        """Return the weighted mean over all pairs of different models of the angular gap between them.

        Half the squared distance between two directions is their gap, and the squared distances of all pairs are those
        to the mean direction. It is NaN for a single model.
        """
        mean = _mean(self._directions(shares), shares)
        nothing = torch.zeros_like(self._norms[0])
        squares = sum(
            (share * norms(each - mean).square() for share, each in zip(shares, self._directions(shares), strict=True)),
            nothing,
        )
        zero = sum((share * (self._norms[state] == 0) for state, share in enumerate(shares)), nothing)
        # A pair of which one is 0 counts 1, but its squared distance gives a half only.
        return (squares + zero * (1 - zero)) / (1 - sum(share**2 for share in shares))

    def _directions(self, shares: Sequence[float]) -> Iterator[Tensor]:
        yield from (directions(self._rows[state], self._norms[state]) for state in range(len(shares)))


def _mean(values: Iterable[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the weighted mean, in a way for which equal values are a fixed point."""
    weight, mean = 0.0, torch.empty(0)
    for share, value in zip(shares, values, strict=True):
        weight += share
        mean = torch.lerp(mean, value, share / weight) if weight > share else value
    return mean
