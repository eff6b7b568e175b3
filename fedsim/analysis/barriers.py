"""Layer-wise barriers: what it costs to replace or mix some layers of a model by those of another.

Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.analysis.mixing.average import with_average
from fedsim.analysis.mixing.groups import Groups, named_groups
from fedsim.analysis.mixing.mixed_models import MAX_MEMORY, MixedModels
from fedsim.analysis.mixing.mixes import (
    Against,
    Mix,
    Normalisation,
    Pair,
    Part,
    Recipe,
    list_mixes,
    parts_of,
    recipe_of,
)
from fedsim.analysis.samples.bands import check_level, with_bands
from fedsim.analysis.samples.measurement import REFERENCES, Comparisons, Measurement, tabulate
from fedsim.analysis.samples.tolerance import Estimates, estimate, strata_of
from fedsim.models.layers import Layers
from fedsim.models.params import Params
from fedsim.training.evaluation import Criterion, cross_entropies


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
    bases: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    references: Sequence[str] = REFERENCES,
    bands: float | None = None,
    tolerance: float | None = None,
    normalisation: Normalisation = "interpolate",
    calibration: Tensor | None = None,
    criterion: Criterion = cross_entropies,
    threads: int = 1,
    max_memory: int = MAX_MEMORY,
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
        Kinds of groups, named groups, or a list of both; see `fedsim.analysis.mixing.groups.named_groups`.
    against
        ``average``: ``other`` is the weighted average of all states, written -1, with t = 1; ``pairs``: another
        state, with t = 0, 1/2, 1.
    ts
        Interpolation coefficients in [0, 1] in place of those defaults.
    pairs
        Ordered pairs (base, other); by default all.
    bases
        The states that are mixed with the average; by default all.
    weights
        One positive number per state; by default all alike, as in the paper.
    references
        What the barriers are measured against; ``swap_ends`` needs models at t = 1 besides.
    bands
        A level such as 0.95 for confidence bands, which hold for all rows of a column together. Examples are drawn
        anew within their classes, as if they had been drawn with the classes' shares given.
    tolerance
        Evaluate each mixed model on only so many examples that its mean loss over all of them is known to within this,
        in nats, for at least 95 % of the rows; by default on all.
    normalisation
        What becomes of running statistics in a layer that is mixed: ``interpolate`` mixes them with it (the paper),
        ``base`` keeps the base's, ``recompute`` takes those of the mixed model on ``calibration``. It is a column of
        the result.
    calibration
        Inputs for ``recompute``, shape [n, ...].
    criterion
        Maps outputs and targets of a batch to one loss per example.
    threads
        That work at a time; the numbers do not depend on it.
    max_memory
        Bytes of results that are kept at a time, as far as a few examples' fit.
    seed
        Of the order of ``cumulative-random``, of the bootstrap, and of the examples that ``tolerance`` takes.

    Returns
    -------
    pandas.DataFrame
        One row per mixed model: ``group, base, other, t, n, loss, error`` with means over the examples, of which the
        mixed model was evaluated on n, and for ``loss`` and ``error`` the mixed model's mean minus each reference, with
        its paired standard error ``_se`` and the ends of its band, ``_low`` and ``_high``:

        - ``_mean_ends``: the mean of the models' own, weighted over all states for the average, plain over the two
          for a pair (the paper's definition);
        - ``_swap_ends``: ``(1 - t)`` times the base's own and ``t`` times that of the base with the whole group from
          ``other`` (the path that Theorem 4.1 speaks of), so 0 at t = 0 and t = 1;
        - ``_own_base``: the base's own;
        - ``_chord``: ``(1 - t)`` times the base's own and ``t`` times the other's; NaN against the average.

    Raises
    ------
    ValueError
        If there is no state or one does not fit the model, an argument is unknown or out of range, or a layer pattern
        matches nothing.
    """
    return measure(
        model,
        states,
        inputs,
        targets,
        groups=groups,
        against=against,
        ts=ts,
        pairs=pairs,
        bases=bases,
        weights=weights,
        references=references,
        bands=bands,
        tolerance=tolerance,
        normalisation=normalisation,
        calibration=calibration,
        criterion=criterion,
        threads=threads,
        max_memory=max_memory,
        seed=seed,
    ).table


def measure(
    model: nn.Module,
    states: Sequence[Params],
    inputs: Tensor,
    targets: Tensor,
    *,
    groups: Groups = "layers",
    against: Against = "average",
    ts: Sequence[float] | None = None,
    pairs: Sequence[Pair] | None = None,
    bases: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    references: Sequence[str] = REFERENCES,
    bands: float | None = None,
    tolerance: float | None = None,
    normalisation: Normalisation = "interpolate",
    calibration: Tensor | None = None,
    criterion: Criterion = cross_entropies,
    threads: int = 1,
    max_memory: int = MAX_MEMORY,
    seed: int = 0,
) -> Measurement:
    """Measure what `barriers` returns, and keep the losses of each example, e.g. for `peaks`.

    Parameters are those of `barriers`.

    Raises
    ------
    ValueError
        As from `barriers`.
    """
    _check(references, bands)
    mixes = list(list_mixes(named_groups(Layers.of(model), groups, seed), len(states), against, ts, pairs, bases))
    models = MixedModels(
        model,
        with_average(model, states, weights),
        normalisation=normalisation,
        calibration=calibration,
        criterion=criterion,
        threads=threads,
        max_memory=max_memory,
    )
    positions = _positions(mixes, models.parts, len(states), references)
    if tolerance is None:
        estimates = Estimates()
        estimates.add_(models.evaluate(positions, inputs, targets), len(targets))
    else:
        estimates = estimate(models, positions, inputs, targets, tolerance=tolerance, seed=seed)
    values = {
        "loss": np.stack([estimates.evaluations[recipe].losses.numpy() for recipe in positions]),
        "error": np.stack([estimates.evaluations[recipe].errors.numpy() for recipe in positions]),
    }
    comparisons = Comparisons(
        mixes,
        mixed=np.array([positions[recipe_of(mix, models.parts)] for mix in mixes], dtype=np.int64),
        # Where no reference needs it, a swapped model may not have been evaluated.
        swapped=np.array([positions.get(recipe_of(mix, models.parts, 1.0), 0) for mix in mixes], dtype=np.int64),
        shares=_shares(weights, len(states)),
    )
    table = tabulate(comparisons, values, np.array([estimates.used[recipe] for recipe in positions]), references)
    measurement = Measurement(table.assign(normalisation=normalisation), comparisons, values, strata_of(targets))
    return measurement if bands is None else replace(measurement, table=with_bands(measurement, bands, seed=seed))


def count_evaluations(
    model: nn.Module,
    states: int,
    *,
    groups: Groups,
    against: Against,
    ts: Sequence[float] | None = None,
    pairs: Sequence[Pair] | None = None,
    references: Sequence[str] = REFERENCES,
) -> int:
    """Return how many different models `barriers` evaluates, of which those with parts in common share work."""
    layers = Layers.of(model)
    mixes = list_mixes(named_groups(layers, groups), states, against, ts, pairs)
    return len(_positions(mixes, parts_of(layers, "interpolate"), states, references))


def _positions(
    mixes: Iterable[Mix], parts: Sequence[Part], states: int, references: Sequence[str]
) -> dict[Recipe, int]:
    """Return the distinct models that a measurement needs, those of the states first, each with its position."""
    recipes: dict[Recipe, None] = dict.fromkeys((base,) * len(parts) for base in range(states))
    for mix in mixes:
        recipes[recipe_of(mix, parts)] = None
        if "swap_ends" in references:
            recipes[recipe_of(mix, parts, 1.0)] = None
    return {recipe: position for position, recipe in enumerate(recipes)}


def _shares(weights: Sequence[float] | None, states: int) -> NDArray[np.float64]:
    shares = np.ones(states) if weights is None else np.asarray(weights, dtype=np.float64)
    return shares / shares.sum()


def _check(references: Sequence[str], bands: float | None) -> None:
    if unknown := [name for name in references if name not in REFERENCES]:
        raise ValueError(f"references has {unknown[0]!r}; it must be one of {', '.join(REFERENCES)}")
    if bands is not None:
        check_level(bands, "bands")
