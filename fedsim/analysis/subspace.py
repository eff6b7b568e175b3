"""Robustness to noise inside the space that training went through, and outside of it.

Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966, figure 5. The released notebook differs:
its checkpoints are one and the same tensor, so that its training space has two dimensions; its noise is positive; and
its averaging direction leads away from the average, at the norm of the whole model.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from torch import nn

from fedsim.analysis.calls import of_models
from fedsim.analysis.data import Data
from fedsim.analysis.directions.random_directions import entries_of, means_of, over_draws, passes, vector_of
from fedsim.analysis.directions.training_space import TrainingSpace, Vectors
from fedsim.analysis.mixing.groups import Groups, named_groups
from fedsim.analysis.mixing.mixes import Mix
from fedsim.analysis.models import Models
from fedsim.models.asymmetry import fixed_entries
from fedsim.models.layers import Layer
from fedsim.models.params import Params, fit

DIRECTIONS = ("training", "null", "average")


@of_models
def subspace_robustness(
    models: Models,
    data: Data,
    *,
    trajectories: Sequence[Sequence[Params]],
    groups: Groups = "layers",
    sigmas: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
    draws: int = 5,
    base: int = 0,
) -> pd.DataFrame:
    """Measure a model with noise of a given norm within its training space, outside of it, and towards the average.

    The training space of a group is spanned by the differences of all checkpoints of all models to the model that is
    measured, restricted to the group's parameters. Buffers stay as they are.

    Parameters
    ----------
    trajectories
        Checkpoints of each of two or more models, up to the model itself: state dicts that do not share memory.
    groups
        As in `fedsim.analysis.barriers.barriers`.
    sigmas
        L2 norms of the noise over a group's parameters.
    draws
        Number of directions of noise, isotropic in their space; each is one line for all sigmas.
    base
        Index of the model that is measured.

    Returns
    -------
    pandas.DataFrame
        One row per group, direction (``training``, ``null``, ``average``) and sigma: ``group, direction, sigma, draws,
        n, loss, error``, means over the n examples and the draws, and ``loss_spread`` and ``error_spread``, standard
        deviations over the draws, NaN for fewer than two. Where there is no such direction, because models are
        equal or training went everywhere, ``draws`` is 0 and the rest NaN.

    Raises
    ------
    ValueError
        If there are fewer than two trajectories, one is empty, a checkpoint does not fit the model, its memory is
        another's, or an argument is out of range.

    Notes
    -----
    A basis is never built: noise in all parameters is projected, which needs inner products of checkpoints only.
    """
    _check(sigmas, base, len(trajectories))
    checkpoints = _checkpoints(models.model, trajectories)
    layers = models.layers
    grouped = named_groups(layers, groups, models.seed)
    named = {group: [layers[name] for name in names] for group, names in grouped.items()}
    origin, average = models.fitted[base], models.average
    moving = dict.fromkeys(layer for members in named.values() for layer in members)
    batches = list(passes(draws, 2 * sum(layer.size for members in named.values() for layer in members)))
    fixed = fixed_entries(models.model)
    space = TrainingSpace(checkpoints, origin, moving, draws=draws, seed=models.seed, fixed=fixed)
    means: dict[tuple[str, str, float], list[np.ndarray]] = defaultdict(list)
    for batch in batches:
        moved = {
            (group, direction, draw): state
            for group, members in named.items()
            for direction, draw, vectors in _directions(space, members, batch, origin, average)
            if (state := _moved(origin, vectors, max(sigmas))) is not None
        }
        mixed = models.interpolated.of([origin, *moved.values()])
        recipes = {
            (group, direction, draw, sigma): mixed.recipe(
                Mix(group, frozenset(layer.name for layer in named[group]), 0, place, sigma / max(sigmas))
            )
            for place, (group, direction, draw) in enumerate(moved, 1)
            for sigma in sigmas
        }
        evaluated = mixed.evaluate(recipes.values(), data)
        for (group, direction, _, sigma), recipe in recipes.items():
            means[group, direction, sigma].append(means_of(evaluated[recipe]))
    return pd.DataFrame(
        [
            {"group": group, "direction": direction, "sigma": sigma, "draws": len(found), "n": len(data)}
            | over_draws(found)
            for group in named
            for direction in DIRECTIONS
            for sigma in sigmas
            for found in [means[group, direction, sigma]]
        ]
    )


def _directions(
    space: TrainingSpace, layers: Sequence[Layer], draws: range, origin: Params, average: Params
) -> Iterator[tuple[str, int, Vectors | None]]:
    """Yield the directions of some draws, and with the first draw that of the average."""
    for draw in draws:
        inside, outside = space.split(layers, draw)
        yield "training", draw, inside
        yield "null", draw, outside
    if draws.start == 0:
        yield "average", 0, {layer: vector_of(average, layer) - vector_of(origin, layer) for layer in layers}


def _moved(model: Params, vectors: Vectors | None, length: float) -> Params | None:
    """Return a model that is moved that far in a direction, or None if there is no direction."""
    norm = sum(float(vector.square().sum()) for vector in (vectors or {}).values()) ** 0.5
    if not vectors or not norm:
        return None
    moved = dict(model)
    for layer, vector in vectors.items():
        moved |= entries_of(vector_of(model, layer) + vector * (length / norm), layer, model)
    return moved


def _checkpoints(model: nn.Module, trajectories: Sequence[Sequence[Params]]) -> list[Params]:
    """Return all checkpoints of all models, checked."""
    checkpoints = []
    for number, trajectory in enumerate(trajectories):
        if not trajectory:
            raise ValueError(f"trajectory {number} is empty; it needs at least the model itself")
        own = [fit(model, state, f"checkpoint {k} of trajectory {number}") for k, state in enumerate(trajectory)]
        memory = [tuple(value.data_ptr() for value in state.values()) for state in own]
        if len(set(memory)) < len(memory):
            raise ValueError(f"checkpoints of trajectory {number} share their memory; clone each when it is taken")
        checkpoints += own
    return checkpoints


def _check(sigmas: Sequence[float], base: int, models: int) -> None:
    if models < 2:
        raise ValueError(f"trajectories has {models} models; an average in another place needs at least two")
    if not sigmas or not all(0 < sigma < float("inf") for sigma in sigmas):
        raise ValueError(f"sigmas = {list(sigmas)}: there must be some, each positive and finite")
    if not 0 <= base < models:
        raise ValueError(f"base = {base} is no model; there are {models}, counted from 0")
