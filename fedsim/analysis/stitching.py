"""Stitching: the first layers of one model under the last layers of another, with nothing trained in between.

Zhou et al. 2023, Going beyond linear mode connectivity, arXiv 2307.08286, section 5.
"""

from collections.abc import Sequence

import pandas as pd
from torch import Tensor, nn

from fedsim.analysis.mixing.average import with_average
from fedsim.analysis.mixing.mixed_models import MAX_MEMORY, MixedModels
from fedsim.analysis.mixing.mixes import Against, Pair, Recipe, list_mixes
from fedsim.models.layers import Layers
from fedsim.models.params import Params
from fedsim.training.evaluation import Criterion, cross_entropies


def stitching(
    model: nn.Module,
    states: Sequence[Params],
    inputs: Tensor,
    targets: Tensor,
    *,
    against: Against = "average",
    weights: Sequence[float] | None = None,
    pairs: Sequence[Pair] | None = None,
    criterion: Criterion = cross_entropies,
    threads: int = 1,
    max_memory: int = MAX_MEMORY,
) -> pd.DataFrame:
    """Measure models whose layers up to one come from ``base`` and all later ones from ``other``.

    Parameters
    ----------
    model, states, inputs, targets, against, weights, pairs
        As in `fedsim.analysis.barriers.barriers`; pairs are all in both directions by default.
    criterion, threads, max_memory
        As in `fedsim.analysis.barriers.barriers`.

    Returns
    -------
    pandas.DataFrame
        One row per layer but the last and pair: ``layer, base, other, n, loss, error``, and ``loss_ends`` and
        ``error_ends``, the means of the two models' own. Layers are in the order in which the model uses them, if it
        can be traced; of parallel branches the one that is used later comes later.

    Raises
    ------
    ValueError
        If there are too few states, one does not fit the model, there are no inputs or not as many targets, or an
        argument is unknown or out of range.
    """
    compared = with_average(model, states, weights, against)
    models = MixedModels(model, compared, criterion=criterion, threads=threads, max_memory=max_memory)
    ends = [(mix.base, mix.other) for mix in list_mixes({"": ()}, len(states), against, (1.0,), pairs)]
    order = _order(models, inputs, Layers.of(model).names)
    recipes = {
        (layer, pair): _stitched(models, set(order[:i]), pair) for i, layer in enumerate(order[:-1], 1) for pair in ends
    }
    own = {state: models.own(state) for pair in ends for state in pair}
    evaluated = models.evaluate([*recipes.values(), *own.values()], inputs, targets)
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
                "error": float(found.errors.mean()),
                "loss_ends": (first.loss + second.loss) / 2,
                "error_ends": float(first.errors.mean() + second.errors.mean()) / 2,
            }
        )
    return pd.DataFrame(rows, columns=["layer", "base", "other", "n", "loss", "error", "loss_ends", "error_ends"])


def _order(models: MixedModels, inputs: Tensor, names: Sequence[str]) -> list[str]:
    """Return the layers in the order of their first use; what cannot be traced, or is not used, in the model's own."""
    first: dict[str, int] = {}
    for i, operation in enumerate(models.operations(inputs) or ()):
        for part in operation.parts:
            first.setdefault(models.parts[part].layer, i)
    return sorted(names, key=lambda name: first.get(name, len(first) and max(first.values()) + 1))


def _stitched(models: MixedModels, layers: set[str], pair: Pair) -> Recipe:
    base, other = pair
    return tuple(base if part.layer in layers else other for part in models.parts)
