"""Stitching: the first layers of one model followed by the last layers of another, without training.

Zhou et al. 2023, Going beyond linear mode connectivity, arXiv 2307.08286, section 5.
"""

from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from fedsim.analysis.calls import of_models
from fedsim.analysis.data import Data
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.analysis.mixing.mixes import Against, Pair, Recipe, ends_of
from fedsim.analysis.models import Models


@of_models
def stitching(models: Models, data: Data, *, against: Against = "average") -> pd.DataFrame:
    """Measure models whose layers up to one come from ``base`` and all later ones from ``other``.

    Parameters
    ----------
    against
        As in `fedsim.analysis.barriers.barriers`.

    Returns
    -------
    pandas.DataFrame
        One row per layer, except the last, and pair: ``layer, base, other, n, loss, error``, and ``loss_ends`` and
        ``error_ends``, the means of the two models' own. Layers are in the order in which the model uses them, if it
        can be traced; of parallel branches the one that is used later comes later.

    Raises
    ------
    ValueError
        If there are too few states, one does not fit the model, there are no inputs or not as many targets, or an
        argument is unknown or out of range.
    """
    models.compared(against)
    mixed = models.interpolated
    ends = ends_of(against, len(models))
    order = _order(mixed, data.inputs, models.layers.names)
    recipes = {
        (layer, pair): _stitched(mixed, set(order[i:]), pair) for i, layer in enumerate(order[:-1], 1) for pair in ends
    }
    own = {state: mixed.own(state) for pair in ends for state in pair}
    evaluated = mixed.evaluate([*recipes.values(), *own.values()], data)
    rows = []
    for (layer, (base, other)), recipe in recipes.items():
        found, first, second = (evaluated[each] for each in (recipe, own[base], own[other]))
        rows.append(
            {
                "layer": layer,
                "base": base,
                "other": other,
                "n": found.n,
                "loss": found.loss,
                "error": found.error,
                "loss_ends": (first.loss + second.loss) / 2,
                "error_ends": (first.error + second.error) / 2,
            }
        )
    return pd.DataFrame(rows, columns=["layer", "base", "other", "n", "loss", "error", "loss_ends", "error_ends"])


def _order(models: MixedModels, inputs: Tensor, names: Sequence[str]) -> list[str]:
    """Return the layers in the order of their first use, or in the model's order if they are not traced or not used."""
    first: dict[str, int] = {}
    for i, operation in enumerate(models.operations(inputs) or ()):
        for part in operation.parts:
            first.setdefault(models.parts[part].layer, i)
    return sorted(names, key=lambda name: first.get(name, len(first) and max(first.values()) + 1))


def _stitched(models: MixedModels, last: set[str], pair: Pair) -> Recipe:
    base, other = pair
    return tuple(other if part.layer in last else base for part in models.parts)
