"""Layer-wise linear feature connectivity: whether the features of a mixed model are the mixed features.

Zhou et al. 2023, Going beyond linear mode connectivity: the layerwise linear feature connectivity, arXiv 2307.08286.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.analysis.calls import of_models
from fedsim.analysis.features.commutativity import Commutativity
from fedsim.analysis.features.degrees import degrees_of
from fedsim.analysis.features.exponential import COLUMNS, Exponential, columns_of
from fedsim.analysis.features.features import Features
from fedsim.analysis.features.linearity import Linearity
from fedsim.analysis.features.moments import Moments, total
from fedsim.analysis.features.sites import Site
from fedsim.analysis.mixing.mixes import Against, Mix, Pair, Source, different_codes, list_mixes, pairs_once
from fedsim.analysis.mixing.names import AVERAGE
from fedsim.analysis.models import Models

# In the paper.
ADDITIVITY_TS = tuple(k / 20 for k in range(1, 20))


@of_models
def connectivity(
    models: Models,
    inputs: Tensor,
    *,
    against: Against = "average",
    ts: Sequence[float] = (0.5,),
    additivity_ts: Sequence[float] = (0.5,),
    exponential: bool = False,
) -> pd.DataFrame:
    """Measure, layer by layer, how close the features of a mixed model are to the mix of the features of its ends.

    The mixed model is ``(1 - t) * base + t * other``, including running statistics. The features of a layer are its
    outputs after the operations without weights that follow, such as an activation or pooling, as a vector; those of
    the last layer are the outputs of the model. Where branches are added or concatenated there are features, too, under
    the name of the block. If a layer or block has several, for instance because it is used again, the last has its name
    and the earlier ones are ``name:1``, ``name:2``.

    Parameters
    ----------
    inputs
        Inputs as the model takes them, shape [n, ...], on the model's device.
    against
        ``average``: each state with the weighted average of all; ``pairs``: states with each other, each pair once; or
        a list of pairs (base, other).
    ts
        Interpolation coefficients in [0, 1].
    additivity_ts
        Coefficients among which the largest distance counts as additivity; the paper's are `ADDITIVITY_TS`. Each costs
        as much as the activations of a forward pass.
    exponential
        Whether to measure how close the models are to having no hidden unit in common, too.

    Returns
    -------
    pandas.DataFrame
        One row per layer, pair and t: ``layer, base, other, t, n`` and, as means over the n examples, some with their
        standard deviation ``_std``:

        - ``cosine``: between the features of the mixed model and the mix of the features of its ends; 1 where both are
          0, and 0 where one is;
        - ``cosine_ends``: between the features of the ends themselves, the baseline;
        - ``ratio``: 1 minus the mean cosine over 1 minus the mean of the baseline; NaN where the ends' features agree;
        - ``coefficient``: the factor by which the mix of features comes closest to those of the mixed model;
        - ``additivity``: the distance between the features of mixed values before an activation and the mix of
          features; NaN where all that follows is affine;
        - ``commutativity``: the distance, over all examples together, between ``W_A H_A + W_B H_B`` and
          ``W_A H_B + W_B H_A`` for weights W and inputs H of a linear or convolutional layer, with
          ``weight_distance`` and ``feature_distance``, those between the weights and between the inputs, for
          comparison; NaN for other layers, and for those that take the model's inputs.

        With ``exponential`` also, for l weighted sums up to the layer, counted again after each normalisation, where
        those of factors of a product add up; biases are not accounted for, and models are not compared with the
        average, which has the units of each:

        - ``exponential``: the cosine between the features of the mixed model and ``(1 - t) ** l`` times the base's plus
          ``t ** l`` times the other's; without any structure it is about `NO_STRUCTURE`, 0.9304, for ReLU at t = 1/2;
          NaN from where branches of different l are added, or after anything that is not known to be homogeneous, such
          as GELU, a softmax or a sum with a number, to the next normalisation;
        - ``exponential_shuffled``: the same with the other's units in random order;
        - ``reciprocal``: the norm of the other's weights times the base's inputs over that of the base's weights times
          these, 0 for disjoint units; NaN for other than linear layers and convolutions. Examples
          where the latter is 0 are left out;
        - ``depth``: l, NaN where there is none.

        Distances are squared and divided by the product of the norms, and 0 between zeros. Examples where one of the
        two is 0 have no distance, and those where the mix of features is 0 no coefficient; the means leave them out.

        With ``average`` there is, for each layer, also a row with base and other -1 and t 1: the average of all models
        against the weighted average of all features, with the weighted mean over all pairs as a baseline;
        ``commutativity``, both distances, and the columns of ``exponential`` are NaN.

        Weights are those that layers compute with, also where an asymmetric network has fixed entries.

    Raises
    ------
    ValueError
        If there are too few states, one does not fit the model, there are no inputs, or an argument is unknown or out
        of range.

    Notes
    -----
    A pair costs at most two passes for its ends, which other pairs share, one for each t, and one for commutativity.
    For a model that `torch.fx` cannot trace, the features are the outputs of the modules of its layers, or those of the
    model alone if it does not call the same layers for all inputs and weights, and additivity is NaN. The released code
    takes the absolute value of the inner product, so that features of opposite signs agree.

    References
    ----------
    Equations 2 to 5 of arXiv 2307.08286.
    """
    if not len(ts):
        raise ValueError("ts is empty; give at least one coefficient from 0 to 1")
    models.compared(against)
    models = models.plain
    ends = pairs_once(None, len(models)) if against == "pairs" else against
    has_codes = bool(different_codes(models.model, models.compared()))
    mixes = [replace(mix, has_codes=has_codes) for mix in list_mixes({"": ()}, len(models), ends, ts)]
    if bad := [t for t in additivity_ts if not 0 <= t <= 1]:
        raise ValueError(f"additivity_ts has {bad[0]}; each must be from 0 to 1")
    plan = _Plan(mixes, tuple(additivity_ts), tuple(models.shares) if against == "average" else (), exponential)
    features = models.features(inputs, plan.sources)
    commutativity = Commutativity(features.weights, plan.ends)
    disjoint = Exponential(features, _depths(models, inputs) if exponential else {}, models.seed)
    batches = features.map(lambda batch: _measure(features, batch, plan, commutativity, disjoint))
    tables = []
    for site, parts in zip(features.sites, zip(*batches, strict=True), strict=True):
        moments = total([part.moments for part in parts])
        exchanged = commutativity.distances(site, np.sum([part.exchanged for part in parts], axis=0))
        table = _table(site, plan, moments, exchanged, len(inputs))
        if exponential:
            means = total([part.exponential for part in parts]).means.reshape(-1, len(COLUMNS))
            padded = np.vstack([means, np.full((len(table) - len(means), len(COLUMNS)), np.nan)])
            table = table.assign(**columns_of(padded), depth=disjoint.depth(site))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class _Plan:
    """What to measure; ``shares`` of the models in their average are empty where that is not measured."""

    mixes: Sequence[Mix]
    additivity_ts: Sequence[float]
    shares: Sequence[float]
    exponential: bool = False

    @cached_property
    def ends(self) -> list[Pair]:
        """Pairs of models, each once."""
        return list(dict.fromkeys((mix.base, mix.other) for mix in self.mixes))

    @cached_property
    def own(self) -> list[int]:
        """Models that are no mixes."""
        every = range(len(self.shares)) if self.shares else ()
        return list(dict.fromkeys([*every, *(state for pair in self.ends for state in pair)]))

    @cached_property
    def sources(self) -> list[Source]:
        """All models, mixed ones last."""
        return list(dict.fromkeys([*self.own, *(mix.source for mix in self.mixes)]))


class _Part(NamedTuple):
    """Sums over a batch for one layer.

    Parameters
    ----------
    moments
        Moments of two quantities of each pair of models, then two of each mixed model, then four of the average.
    exchanged
        Sums for commutativity.
    exponential
        Moments of three quantities of each mixed model, if they are measured.
    """

    moments: Moments
    exchanged: NDArray[np.float64]
    exponential: Moments


def _depths(models: Models, inputs: Tensor) -> dict[int, int]:
    """Return the number of weighted sums up to each operation that has one; empty of a model that is no graph."""
    operations = models.interpolated.operations(inputs)
    return {} if operations is None else degrees_of(operations, models.interpolated.tracer.model)


def _measure(
    features: Features, batch: Tensor, plan: _Plan, commutativity: Commutativity, disjoint: Exponential
) -> list[_Part]:
    parts = []
    for site, values in features.walk(batch):
        of = dict(zip(plan.sources, values, strict=True))
        found = Linearity(features, site, of)
        quantities = [q for pair in plan.ends for q in found.of_pair(*pair, plan.additivity_ts)]
        quantities += [q for mix in plan.mixes for q in found.of_mix(mix)]
        if plan.shares:
            quantities += found.of_average(plan.shares)
        own = {state: of[state] for state in plan.own}
        stacked = torch.stack(quantities) if quantities else torch.empty(0, len(batch))
        more = [q for mix in plan.mixes for q in disjoint.of_mix(site, mix, of)] if plan.exponential else []
        of_disjoint = Moments.of(torch.stack(more) if more else torch.empty(0, len(batch)))
        parts.append(_Part(Moments.of(stacked), commutativity.sums(site, own), of_disjoint))
    return parts


def _table(
    site: Site, plan: _Plan, moments: Moments, exchanged: dict[str, NDArray[np.float64]], n: int
) -> pd.DataFrame:
    """Return the rows of a layer."""
    place = {pair: number for number, pair in enumerate(plan.ends)}
    pair_of = np.array([place[mix.base, mix.other] for mix in plan.mixes], dtype=np.int64)
    gaps = 2 * pair_of
    own = 2 * len(plan.ends) + 2 * np.arange(len(plan.mixes))
    base, other = ([getattr(mix, name) for mix in plan.mixes] for name in ("base", "other"))
    t = [mix.t for mix in plan.mixes]
    # Positions of the angular gap, the coefficient, the baseline and additivity.
    columns = np.array([own, own + 1, gaps, gaps + 1])
    controls = {name: values[pair_of] for name, values in exchanged.items()}
    if plan.shares:
        last = len(moments.n) - 4 + np.arange(4)
        columns = np.hstack([columns, last[:, None]])
        base, other, t = [*base, AVERAGE], [*other, AVERAGE], [*t, 1.0]
        controls = {name: np.append(values, np.nan) for name, values in controls.items()}
    gap, factor, baseline, additivity = moments.means[columns]
    gap_std, factor_std, baseline_std, _ = moments.deviations[columns]
    ratio = np.divide(gap, baseline, out=np.full(len(gap), np.nan), where=baseline != 0)
    measured = {
        "cosine": 1 - gap,
        "cosine_std": gap_std,
        "cosine_ends": 1 - baseline,
        "cosine_ends_std": baseline_std,
        "ratio": ratio,
        "coefficient": factor,
        "coefficient_std": factor_std,
        "additivity": additivity,
    }
    return pd.DataFrame({"layer": site.name, "base": base, "other": other, "t": t, "n": n} | measured | controls)
