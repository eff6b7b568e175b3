"""Layer-wise barriers: the cost of replacing or mixing some layers of a model by those of another.

Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from torch import nn

from fedsim.analysis.calls import of_models
from fedsim.analysis.data import Data
from fedsim.analysis.mixing.groups import Groups, named_groups
from fedsim.analysis.mixing.mixes import Against, Mix, Recipe, list_mixes, parts_of, recipe_of
from fedsim.analysis.mixing.names import FACTORS, PathName
from fedsim.analysis.mixing.paths import MixingPath
from fedsim.analysis.models import Models
from fedsim.analysis.samples.bands import check_level, with_bands
from fedsim.analysis.samples.per_example import REFERENCES, Comparisons, Measurement, tabulate
from fedsim.analysis.samples.tolerance import Estimates, estimate
from fedsim.models.layers import Layers
from fedsim.training.evaluation import is_of_batch


@of_models
def barriers(
    models: Models,
    data: Data,
    *,
    groups: Groups = "layers",
    against: Against = "average",
    ts: Sequence[float] | None = None,
    references: Sequence[str] = REFERENCES,
    bands: float | None = None,
    path: PathName = "factors",
) -> pd.DataFrame:
    """Measure the loss and error of mixed models, and the barriers against each reference.

    A mixed model is model ``base`` whose layers of ``group`` are ``(1 - t) * base + t * other``. Models are
    evaluated in eval mode. Like all measurements, this can also be called as ``barriers(model, states, inputs,
    targets)``, with the fields of `Models` and `Data` as keywords.

    Parameters
    ----------
    groups
        Kinds of groups, named groups, or a list of both; see `fedsim.analysis.mixing.groups.named_groups`.
    against
        ``average``: ``other`` is the weighted average of all states, written -1, with t = 1; ``pairs``: another
        state, in all ordered pairs, with t = 0, 1/2, 1; or a list of pairs (base, other) of these.
    ts
        Interpolation coefficients in [0, 1], instead of those defaults.
    references
        References of the barriers; ``swap_ends`` also needs models at t = 1.
    bands
        Level of simultaneous confidence bands, such as 0.95: each column's hold for all of its rows together.
    path
        How models with LoRA are mixed: ``factors`` as all other layers, A and B each; ``product``: the mix of the
        weights, ``W + scale ((1 - t) B A + t B' A')``, exactly; ``aligned``: factors, after those of ``other`` have
        been rotated into the frame in which they are closest to the base's. All three agree where both factors of a
        layer move and t is 0 or, between two models, 1. Of only one factor, ``product`` mixes that factor.

    Returns
    -------
    pandas.DataFrame
        One row per mixed model: ``group, base, other, t, n, loss, error`` with means over the examples, of which the
        mixed model was evaluated on n, and for ``loss`` and ``error`` the mixed model's mean minus each reference, with
        the standard error ``_se`` of the paired differences and the ends of their band, ``_low`` and ``_high``. Both
        are for the mean over the population, with the examples drawn as `Data` says, and ``sampling`` repeats:
        ``free``, or ``stratified: 500 of 10000``. The references:

        - ``_mean_ends``: the mean of the models' own values, weighted over all states for the average, unweighted over
          the two for a pair (the paper's definition);
        - ``_swap_ends``: ``(1 - t)`` times the base's own and ``t`` times that of the base with the whole group from
          ``other`` (the path of Theorem 4.1), so 0 at t = 0 and t = 1;
        - ``_own_base``: the base's own;
        - ``_chord``: ``(1 - t)`` times the base's own and ``t`` times the other's; NaN against the average.

        With ``precision = "bfloat16"`` ``n_float32`` is on how many of the n examples the model was evaluated in
        float32 too.

    Raises
    ------
    ValueError
        If there is no state or one does not fit the model, an argument is unknown or out of range, a layer pattern
        matches nothing, or a path needs LoRA and the model has none.
    """
    return measure(
        models, data, groups=groups, against=against, ts=ts, references=references, bands=bands, path=path
    ).table


@of_models
def measure(
    models: Models,
    data: Data,
    *,
    groups: Groups = "layers",
    against: Against = "average",
    ts: Sequence[float] | None = None,
    references: Sequence[str] = REFERENCES,
    bands: float | None = None,
    path: PathName = "factors",
) -> Measurement:
    """Measure what `barriers` returns, and keep the losses of each example, e.g. for `peaks`.

    The parameters are those of `barriers`.

    Raises
    ------
    ValueError
        As from `barriers`.
    """
    _check(references, bands, against)
    named = named_groups(models.layers, groups, models.seed)
    mixes = list(list_mixes(named, len(models), against, ts))
    models.compared(against)
    mixing = MixingPath(models.mixed, models.compared(), models.shares, models.model, path)
    positions = _positions(mixes, mixing.recipe, [models.mixed.own(state) for state in range(len(models))], references)
    mixed = mixing.mixed
    if data.tolerance is None or data.target_counts is not None or is_of_batch(data.criterion):
        estimates = Estimates()
        estimates.add_(mixed.evaluate(positions, data), len(data))
    else:
        estimates = estimate(mixed, positions, data, tolerance=data.tolerance, seed=models.seed)
    values = {
        "loss": np.stack([estimates.evaluations[recipe].losses.numpy() for recipe in positions]),
        "error": np.stack([estimates.evaluations[recipe].errors.numpy() for recipe in positions]),
    }
    comparisons = Comparisons(
        mixes,
        mixed=np.array([positions[mixing.recipe(mix)] for mix in mixes], dtype=np.int64),
        # Where no reference needs it, a swapped model may not have been evaluated.
        swapped=np.array([positions.get(mixing.recipe(mix, 1.0), 0) for mix in mixes], dtype=np.int64),
        shares=models.shares,
    )
    used = np.array([estimates.used[recipe] for recipe in positions])
    sampling = data.sampling
    table = tabulate(comparisons, values, used, sampling, references)
    table = table.assign(normalisation=models.normalisation, sampling=sampling.text)
    if data.precision != "float32":
        exact = np.array([estimates.in_float32[recipe] for recipe in positions])
        table.insert(list(table.columns).index("n") + 1, "n_float32", exact[comparisons.mixed])
    if path != FACTORS:
        table = table.assign(path=path)
    measurement = Measurement(table, comparisons, values, sampling)
    return (
        measurement if bands is None else replace(measurement, table=with_bands(measurement, bands, seed=models.seed))
    )


def count_evaluations(
    model: nn.Module,
    states: int,
    *,
    groups: Groups,
    against: Against,
    ts: Sequence[float] | None = None,
    references: Sequence[str] = REFERENCES,
) -> int:
    """Return the number of different models that `barriers` evaluates; models with common parts share work."""
    layers = Layers.of(model)
    mixes, parts = list_mixes(named_groups(layers, groups), states, against, ts), parts_of(layers, "interpolate")
    own = [(state,) * len(parts) for state in range(states)]
    return len(_positions(mixes, partial(recipe_of, parts=parts), own, references))


def _positions(
    mixes: Iterable[Mix], recipe: Callable[..., Recipe], own: Sequence[Recipe], references: Sequence[str]
) -> dict[Recipe, int]:
    """Return the distinct models that a measurement needs, those of the states first, each with its position."""
    recipes = dict.fromkeys(own)
    for mix in mixes:
        recipes[recipe(mix)] = None
        if "swap_ends" in references:
            recipes[recipe(mix, t=1.0)] = None
    return {recipe: position for position, recipe in enumerate(recipes)}


def _check(references: Sequence[str], bands: float | None, against: Against) -> None:
    if isinstance(references, str):
        raise TypeError(f"references = {references!r} must be a list, such as [{references!r}]")
    if unknown := [name for name in references if name not in REFERENCES]:
        raise ValueError(f"references has {unknown[0]!r}; it must be one of {', '.join(REFERENCES)}")
    if not isinstance(against, str | Sequence):
        raise TypeError(f"against = {against!r} must be 'average', 'pairs', or a list of pairs (base, other)")
    if not against:
        raise ValueError("against is empty; give 'average', 'pairs', or pairs (base, other)")
    if bands is not None:
        check_level(bands, "bands")
