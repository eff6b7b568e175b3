"""Interaction of layers: the cost of moving some together, minus the sum of the costs of moving each alone."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from fedsim.analysis.calls import of_models
from fedsim.analysis.data import Data
from fedsim.analysis.mixing.mixes import Against, Mix, Recipe, ends_of, is_average, list_mixes
from fedsim.analysis.mixing.paired import difference_columns
from fedsim.analysis.models import Models
from fedsim.training.evaluation import Evaluation


@of_models
def interaction(
    models: Models, data: Data, *, against: Against = "average", t: float | None = None, pairwise: bool = False
) -> pd.DataFrame:
    """Measure how far the barriers of single layers are from adding up to the barrier of all of them.

    With D(S) the loss of the base with the layers S moved minus the base's own, the interaction is D(all) minus the
    sum of the D(k) of each layer k, and that of two layers is D(k and l) - D(k) - D(l). It is negative where layers
    that are moved together repair each other.

    Parameters
    ----------
    against
        As in `fedsim.analysis.barriers.barriers`.
    t
        How far layers move towards the other; by default 1 for the average, 1/2 for pairs.
    pairwise
        Whether to measure all pairs of layers as well; their number is quadratic in that of the layers.

    Returns
    -------
    pandas.DataFrame
        One row per base and other, with ``first`` and ``second`` empty, and one per pair of layers, the first nearer to
        the input: ``base, other, t, first, second, n, loss_interaction, error_interaction``, the last
        two with paired standard errors ``_se``, for the ``sampling`` of `Data`.

    Raises
    ------
    ValueError
        If there are too few states, one does not fit the model, or an argument is unknown or out of range.

    Notes
    -----
    For a quadratic loss the interaction of two layers is the displacement of one, times the Hessian's block of the two,
    times the displacement of the other, and that of all layers is the sum over all pairs.
    """
    names = models.layers.names
    models.compared(against)
    ends = ends_of(against, len(models))
    t = (1.0 if all(map(is_average, ends)) else 0.5) if t is None else t
    together = list(list_mixes({"": names}, len(models), against, (t,)))
    mixed = models.mixed
    layers = [(name,) for name in names]
    terms = {("", ""): names} | ({pair: pair for pair in combinations(names, 2)} if pairwise else {})
    recipes = {
        (mix, moved): mixed.recipe(replace(mix, layers=frozenset(moved)))
        for mix in together
        for moved in [(), *layers, *terms.values()]
    }
    evaluated = mixed.evaluate(recipes.values(), data)
    sampling, rows = data.sampling, []
    for mix in together:
        changes = {moved: _change(evaluated, recipes, mix, moved) for moved in [*layers, *terms.values()]}
        for (first, second), moved in terms.items():
            losses, errors = changes[moved] - sum(changes[name,] for name in moved)
            moved_layers = {"base": mix.base, "other": mix.other, "t": mix.t, "first": first, "second": second}
            differences = difference_columns("interaction", losses, errors, sampling)
            rows.append(moved_layers | {"n": len(losses)} | differences)
    return pd.DataFrame(rows)


def _change(
    evaluated: Mapping[Recipe, Evaluation],
    recipes: Mapping[tuple[Mix, tuple[str, ...]], Recipe],
    mix: Mix,
    moved: tuple[str, ...],
) -> Tensor:
    """Return the changes by moving some layers: losses and errors of each example, shape [2, n]."""
    after, before = evaluated[recipes[mix, moved]], evaluated[recipes[mix, ()]]
    return torch.stack([after.losses - before.losses, after.errors - before.errors])
