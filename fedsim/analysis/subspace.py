"""Robustness to noise within the space that training went through, and to noise outside of it.

Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966, figure 5. The released notebook differs:
its checkpoints are one and the same tensor, so that its training space has two dimensions; its noise is positive; and
its averaging direction leads away from the average, at the norm of the whole model.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from torch import Tensor, nn

from fedsim.analysis.directions.random_directions import entries_of, means_of, over_draws, passes, vector_of
from fedsim.analysis.directions.training_space import TrainingSpace, Vectors
from fedsim.analysis.mixing.average import with_average
from fedsim.analysis.mixing.groups import Groups, named_groups
from fedsim.analysis.mixing.mixed_models import MAX_MEMORY, MixedModels
from fedsim.analysis.mixing.mixes import Mix
from fedsim.models.layers import Layer, Layers
from fedsim.models.params import Params, fit
from fedsim.training.evaluation import Criterion, cross_entropies

DIRECTIONS = ("training", "null", "average")


def subspace_robustness(
    model: nn.Module,
    trajectories: Sequence[Sequence[Params]],
    inputs: Tensor,
    targets: Tensor,
    *,
    groups: Groups = "layers",
    sigmas: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
    draws: int = 5,
    base: int = 0,
    weights: Sequence[float] | None = None,
    criterion: Criterion = cross_entropies,
    threads: int = 1,
    max_memory: int = MAX_MEMORY,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure a model with noise of a given norm within its training space, outside of it, and towards the average.

    The training space of a group is spanned by the differences of all checkpoints of all models to the model that is
    measured, restricted to the group's parameters. Buffers stay as they are.

    Parameters
    ----------
    model, inputs, targets, groups, criterion, threads, max_memory
        As in `fedsim.analysis.barriers.barriers`.
    trajectories
        For each of two or more models its checkpoints, state dicts that do not share memory; the last is the model.
    sigmas
        L2 norms of the noise over a group's parameters.
    draws
        Directions of noise, isotropic in their space; each is one line for all sigmas.
    base
        The model that is measured, an index of ``trajectories``.
    weights
        One positive number per model, of the average; by default all alike.
    seed
        Of the noise, and of the order of ``cumulative-random``.

    Returns
    -------
    pandas.DataFrame
        One row per group, direction (``training``, ``null``, ``average``) and sigma: ``group, direction, sigma, draws,
        n, loss, error``, means over the n examples and the draws, and ``loss_spread`` and ``error_spread``, standard
        deviations over the draws, NaN for fewer than two. Where there is no such direction, since models are equal or
        training went everywhere, ``draws`` is 0 and the rest NaN.

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
    checkpoints = _checkpoints(model, trajectories)
    layers = Layers.of(model)
    named = {group: [layers[name] for name in names] for group, names in named_groups(layers, groups, seed).items()}
    *models, average = with_average(model, [own[-1] for own in trajectories], weights)
    moving = dict.fromkeys(layer for members in named.values() for layer in members)
    batches = list(passes(draws, 2 * sum(layer.size for members in named.values() for layer in members)))
    space = TrainingSpace(checkpoints, models[base], moving, draws=draws, seed=seed)
    means: dict[tuple[str, str, float], list[np.ndarray]] = defaultdict(list)
    for batch in batches:
        moved = {
            (group, direction, draw): state
            for group, members in named.items()
            for direction, draw, vectors in _directions(space, members, batch, models[base], average)
            if (state := _moved(models[base], vectors, max(sigmas))) is not None
        }
        mixed = MixedModels(
            model, [models[base], *moved.values()], criterion=criterion, threads=threads, max_memory=max_memory
        )
        recipes = {
            (group, direction, draw, sigma): mixed.recipe(
                Mix(group, frozenset(layer.name for layer in named[group]), 0, place, sigma / max(sigmas))
            )
            for place, (group, direction, draw) in enumerate(moved, 1)
            for sigma in sigmas
        }
        evaluated = mixed.evaluate(recipes.values(), inputs, targets)
        for (group, direction, _, sigma), recipe in recipes.items():
            means[group, direction, sigma].append(means_of(evaluated[recipe]))
    return pd.DataFrame(
        [
            {"group": group, "direction": direction, "sigma": sigma, "draws": len(found), "n": len(targets)}
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
