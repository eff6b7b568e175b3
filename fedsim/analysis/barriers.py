"""Layer-wise barriers: what it costs to replace or mix some layers of a model by those of another.

Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from fedsim.analysis.groups import Groups, named_groups
from fedsim.analysis.mixed_models import MixedModels
from fedsim.analysis.mixes import AVERAGE, Against, Mix, Normalisation, Pair, Recipe, list_mixes, parts_of, recipe_of
from fedsim.averaging import weighted_mean
from fedsim.evaluation import Criterion, Evaluation, cross_entropies
from fedsim.layers import Layers
from fedsim.params import Params

REFERENCES = ("mean_ends", "swap_ends", "own_base", "chord")


def barriers(
    model: nn.Module,
    states: Sequence[Params],
    inputs: Tensor,
    targets: Tensor,
    *,
    groups: Groups = "layers",
    against: Against = "average",
    ts: Sequence[float] | None = None,
    pairs: Sequence[Pair] | None = None,
    weights: Sequence[float] | None = None,
    normalisation: Normalisation = "interpolate",
    criterion: Criterion = cross_entropies,
    threads: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the loss and error of mixed models, and the barriers against each reference.

    A mixed model is model ``base`` whose layers of ``group`` are ``(1 - t) * base + t * other``. Models are
    evaluated in eval mode.

    Parameters
    ----------
    model
        A module of the states' architecture; it is not changed.
    states
        State dicts of at least one model.
    inputs, targets
        Inputs as the model takes them, shape [n, ...], and class indices, shape [n], on the model's device.
    groups
        Kinds of groups, named groups, or a list of both; see `fedsim.analysis.groups.named_groups`.
    against
        ``average``: ``other`` is the weighted average of all states, written -1, with t = 1; ``pairs``: another
        state, with t = 0, 1/2, 1.
    ts
        Interpolation coefficients in [0, 1] in place of those defaults.
    pairs
        Ordered pairs (base, other); by default all.
    weights
        One positive number per state; by default all alike, as in the paper.
    normalisation
        What becomes of running statistics in a layer that is mixed: ``interpolate`` mixes them with it (the paper),
        ``base`` keeps the base's. It is a column of the result.
    criterion
        Maps outputs and targets of a batch to one loss per example.
    threads
        That work at a time; the numbers do not depend on it.
    seed
        Of the order of ``cumulative-random``.

    Returns
    -------
    pandas.DataFrame
        One row per mixed model: ``group, base, other, t, n, loss, error`` with means over the n examples, and for
        ``loss`` and ``error`` the mixed model's mean minus each reference, with its paired standard error ``_se``:

        - ``_mean_ends``: the mean of the models' own, weighted over all states for the average, plain over the two
          for a pair (the paper's definition);
        - ``_swap_ends``: ``(1 - t)`` times the base's own and ``t`` times that of the base with the whole group from
          ``other`` (the path that Theorem 4.1 speaks of), so 0 at t = 0 and t = 1;
        - ``_own_base``: the base's own;
        - ``_chord``: ``(1 - t)`` times the base's own and ``t`` times the other's; NaN against the average.

    Raises
    ------
    ValueError
        If there is no state, an argument is unknown or out of range, or a layer pattern matches nothing.
    """
    layers = Layers.of(model)
    mixes = list(list_mixes(named_groups(layers, groups, seed), len(states), against, ts, pairs))
    weights = [1.0] * len(states) if weights is None else weights
    average = weighted_mean(states, weights)
    models = MixedModels(
        model,
        [*states, average | {k: v for k, v in states[0].items() if k not in average}],
        normalisation=normalisation,
        criterion=criterion,
        threads=threads,
    )
    own = [models.own(base) for base in range(len(states))]
    rows = [(models.recipe(mix), models.recipe(mix, 1.0)) for mix in mixes]
    evaluated = models.evaluate([*own, *(recipe for row in rows for recipe in row)], inputs, targets)
    ends = [evaluated[recipe] for recipe in own]
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    return pd.DataFrame(
        [
            _row(mix, evaluated[mixed], evaluated[swapped], ends, shares)
            for mix, (mixed, swapped) in zip(mixes, rows, strict=True)
        ]
    ).assign(normalisation=normalisation)


def count_evaluations(
    model: nn.Module, states: int, *, groups: Groups, against: Against, pairs: Sequence[Pair] | None = None
) -> int:
    """Return how many models `barriers` would evaluate, each on all examples."""
    layers = Layers.of(model)
    parts = parts_of(layers, "interpolate")
    recipes: set[Recipe] = {(base,) * len(parts) for base in range(states)}
    for mix in list_mixes(named_groups(layers, groups), states, against, None, pairs):
        recipes |= {recipe_of(mix, parts), recipe_of(mix, parts, 1.0)}
    return len(recipes)


def _row(
    mix: Mix, mixed: Evaluation, swapped: Evaluation, own: Sequence[Evaluation], shares: np.ndarray
) -> dict[str, Any]:
    """Compute one row; every difference is taken example by example, so that its standard error is paired."""
    n, t = mixed.n, mix.t
    row: dict[str, Any] = {"group": mix.group, "base": mix.base, "other": mix.other, "t": t, "n": n}
    row |= {"loss": mixed.loss, "error": float(mixed.errors.mean())}
    for metric, attribute in (("loss", "losses"), ("error", "errors")):
        value, swap = getattr(mixed, attribute), getattr(swapped, attribute)
        ends = [getattr(evaluation, attribute) for evaluation in own]
        base = ends[mix.base]
        if mix.other == AVERAGE:
            mean_ends = sum(share * end for share, end in zip(shares, ends, strict=True))
            chord = base * np.nan
        else:
            mean_ends = (base + ends[mix.other]) / 2
            chord = (1 - t) * base + t * ends[mix.other]
        references = (mean_ends, (1 - t) * base + t * swap, base, chord)
        for name, reference in zip(REFERENCES, references, strict=True):
            difference = (value - reference).numpy()
            row[f"{metric}_{name}"] = float(difference.mean())
            row[f"{metric}_{name}_se"] = float(difference.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return row
