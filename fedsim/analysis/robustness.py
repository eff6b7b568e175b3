"""Robustness of layers: the cost of moving towards the average, compared with random directions of equal length.

Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

from fedsim.analysis.calls import of_models
from fedsim.analysis.data import Data
from fedsim.analysis.directions.random_directions import entries_of, gaussian, means_of, over_draws, passes, vector_of
from fedsim.analysis.mixing.groups import Groups, named_groups
from fedsim.analysis.mixing.mixes import (
    Against,
    Mix,
    Pair,
    list_mixes,
)
from fedsim.analysis.models import Models
from fedsim.models.asymmetry import FixedEntries, fixed_entries
from fedsim.models.layers import Layer
from fedsim.models.params import Params

# What is evaluated besides the draws, which count from 0.
TOWARDS, OWN = -1, -2


@of_models
def robustness(
    models: Models,
    data: Data,
    *,
    groups: Groups = "layers",
    against: Against = "average",
    ts: Sequence[float] = (0.5, 1.0),
    draws: int = 5,
) -> pd.DataFrame:
    """Measure models that are moved towards another model, and equally far in random directions.

    In a random direction each layer of the group moves by Gaussian noise of the norm that its parameters' difference to
    ``other`` has, times t; buffers stay the base's, unless they are recomputed. A draw is one direction for all t,
    bases and groups.

    Parameters
    ----------
    groups, against
        As in `fedsim.analysis.barriers.barriers`.
    ts
        How far to move, in [0, 1].
    draws
        Number of random directions.

    Returns
    -------
    pandas.DataFrame
        Two rows per mixed model, with ``direction`` ``average`` (towards ``other``, also in pairs) and ``random``:
        ``group, base, other, t, direction, draws, n, loss, error``, means over the n examples and the draws;
        ``loss_own_base`` and ``error_own_base``, minus the base's own; ``loss_spread`` and ``error_spread``, standard
        deviations over the draws, NaN for fewer than two.

    Raises
    ------
    ValueError
        If there are too few states, one does not fit the model, an argument is unknown or out of range, or a layer
        pattern matches nothing.

    Notes
    -----
    The released code draws a new direction for each t of its vision transformers; here a draw is a line. The perturbed
    models of all draws are in memory together, up to half a GiB; more take several passes.
    """
    named = named_groups(models.layers, groups, models.seed)
    *states, average = models.compared(against)
    mixes = list(list_mixes(named, len(states), against, ts))
    ends = list(dict.fromkeys((mix.base, mix.other) for mix in mixes))
    moving = [layer for layer in models.layers if any(layer.name in members for members in named.values())]
    means: dict[tuple[Mix, int], np.ndarray] = {}
    fixed = fixed_entries(models.model)
    for batch in passes(draws, len(ends) * sum(layer.size for layer in moving)):
        noisy = [
            state for draw in batch for state in _perturbed([*states, average], ends, moving, models.seed, draw, fixed)
        ]
        place = {key: len(states) + number for number, key in enumerate(product(batch, ends))}
        mixed = models.mixed.of([*states, *noisy, average])
        recipes = {
            (mix, draw): mixed.recipe(replace(mix, other=place[draw, (mix.base, mix.other)]))
            for mix in mixes
            for draw in batch
        }
        if batch.start == 0:
            recipes |= {(mix, TOWARDS): mixed.recipe(mix) for mix in mixes}
            recipes |= {(mix, OWN): mixed.own(mix.base) for mix in mixes}
        evaluated = mixed.evaluate(recipes.values(), data)
        means |= {key: means_of(evaluated[recipe]) for key, recipe in recipes.items()}
    rows = []
    for mix in mixes:
        ends_of = {"group": mix.group, "base": mix.base, "other": mix.other, "t": mix.t}
        loss, error = means[mix, OWN]
        for direction, chosen in (("average", [TOWARDS]), ("random", range(draws))):
            found = over_draws([means[mix, draw] for draw in chosen])
            above = {"loss_own_base": found["loss"] - loss, "error_own_base": found["error"] - error}
            rows.append(ends_of | {"direction": direction, "draws": len(chosen), "n": len(data)} | found | above)
    return pd.DataFrame(rows)


def _perturbed(
    models: Sequence[Params],
    ends: Sequence[Pair],
    layers: Sequence[Layer],
    seed: int,
    draw: int,
    fixed: Mapping[str, FixedEntries],
) -> list[Params]:
    """Return the base of each pair with each layer moved as far as to the other's, in one random direction for all."""
    perturbed = [dict(models[base]) for base, _ in ends]
    for layer in layers:
        noise = gaussian(layer, models[0], seed, "robustness", draw, fixed)
        noise /= noise.norm()
        for state, (base, other) in zip(perturbed, ends, strict=True):
            origin = vector_of(models[base], layer)
            length = (vector_of(models[other], layer) - origin).norm()
            state |= entries_of(origin + length * noise, layer, models[base])
    return perturbed
