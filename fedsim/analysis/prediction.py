"""Barriers predicted from gradients and Hessian-vector products at the ends of a path, without a mixed model.

Barriers from the ends are in the spirit of arXiv 2406.16300; the formulas are ours.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from fedsim.analysis.barriers import barriers
from fedsim.analysis.calls import of_models
from fedsim.analysis.data import Data
from fedsim.analysis.derivatives import derivatives
from fedsim.analysis.mixing.groups import Groups, named_groups
from fedsim.analysis.mixing.mixes import Against, Mix, list_mixes
from fedsim.analysis.models import Models
from fedsim.analysis.ranks import rank_correlation
from fedsim.models.params import Params, as_real


@of_models
def prediction(
    models: Models, data: Data, *, groups: Groups = "layers", against: Against = "average", measured: bool = True
) -> pd.DataFrame:
    """Predict the loss barrier halfway along the path on which one model takes a layer of another.

    The path leads from the base to the base with the whole layer of the other; its barrier is the loss halfway minus
    the mean loss of both ends: ``loss_swap_ends`` at t = 1/2 in `fedsim.analysis.barriers`.

    Parameters
    ----------
    groups, against
        As in `fedsim.analysis.barriers`.
    measured
        Whether to measure the barriers too, which evaluates the mixed models.

    Returns
    -------
    pandas.DataFrame
        One row per group, in the column ``layer``, and pair: ``layer, base, other, n``, with d for the displacement, g
        for gradients and H for Hessians at the two ends a and b, and

        - ``loss_predicted``: ``5 (g_a - g_b) d / 32 + d (H_a + H_b) d / 64``, which is exact for a loss that is a
          polynomial of degree five or less along the path;
        - ``loss_predicted_slopes``: ``(g_a - g_b) d / 8``, exact up to degree three;
        - ``curvature``: ``d (H_a + H_b) d / 2``; a quadratic loss has the barrier ``-curvature / 8``;
        - with ``measured`` ``loss_swap_ends`` and ``loss_swap_ends_se``, the barrier itself, and ``rank_correlation``:
          Spearman's, over the single layers of the pair, of predicted and measured barriers; NaN for fewer than three.

    Raises
    ------
    ValueError
        If there are too few states, one does not fit the model, an argument is unknown or out of range, or a layer
        pattern matches nothing.

    Notes
    -----
    A row costs at most two gradients and two Hessian-vector products; the gradient at the base is that of all its rows.
    Derivatives are those of parameters: what running statistics add is not predicted. Activations that are linear in
    pieces, such as ReLU, have no curvature of their own, so that where models are far apart little of a barrier is seen
    from the ends.
    """
    named = named_groups(models.layers, groups, models.seed)
    states = models.compared(against)
    mixes = list(list_mixes(named, len(models), against, (0.5,)))
    found = torch.zeros(len(mixes), 4, dtype=torch.float64)
    for base in sorted({mix.base for mix in mixes}):
        rows = [row for row, mix in enumerate(mixes) if mix.base == base]
        steps = [_step(models, mixes[row], states) for row in rows]
        found[rows, :2] = derivatives(models.model, states[base], data, steps)
        for row, step in zip(rows, steps, strict=True):
            swapped = states[base] | _taken(models, mixes[row], states)
            found[row, 2:] = derivatives(models.model, swapped, data, [step])[0]
    start, start_bend, end, end_bend = found.numpy().T
    table = pd.DataFrame(
        {
            "layer": [mix.group for mix in mixes],
            "base": [mix.base for mix in mixes],
            "other": [mix.other for mix in mixes],
            "n": len(data),
            "loss_predicted": 5 * (start - end) / 32 + (start_bend + end_bend) / 64,
            "loss_predicted_slopes": (start - end) / 8,
            "curvature": (start_bend + end_bend) / 2,
        }
    )
    return _with_measured(table, models, data, groups, against, named) if measured else table


def _taken(models: Models, mix: Mix, states: Sequence[Params]) -> Params:
    """Return the entries that the base takes from the other."""
    parts = [part for part in models.mixed.parts if part.moves and part.layer in mix.layers]
    return {key: states[mix.other][key] for part in parts for key in part.keys}


def _step(models: Models, mix: Mix, states: Sequence[Params]) -> Params:
    """Return the displacement of the parameters that move."""
    keys = [key for layer in models.layers if layer.name in mix.layers for key in layer.parameters]
    ends = [{key: as_real(states[end][key]).double() for key in keys} for end in (mix.base, mix.other)]
    return {key: ends[1][key] - ends[0][key] for key in keys}


def _with_measured(
    table: pd.DataFrame,
    models: Models,
    data: Data,
    groups: Groups,
    against: Against,
    named: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Return the table with the barriers themselves, and how alike both rank the layers of a pair."""
    measured = barriers(models, data, groups=groups, against=against, ts=(0.5,), references=("swap_ends",))
    columns = ["loss_swap_ends", "loss_swap_ends_se", "sampling"]
    table[columns] = measured[columns]
    single = table["layer"].map(lambda name: len(named[name]) == 1)
    known = table[single].dropna(subset=["loss_predicted", "loss_swap_ends"])
    correlations = {
        pair: rank_correlation(rows["loss_predicted"], rows["loss_swap_ends"])
        for pair, rows in known.groupby(["base", "other"])
    }
    pairs = zip(table["base"], table["other"], strict=True)
    return table.assign(rank_correlation=[correlations.get(pair, np.nan) for pair in pairs])
