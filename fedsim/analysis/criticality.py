"""Criticality of layers: what it costs a model to go back to where it started, layer by layer.

Zhang, Bengio and Singer 2022, Are all layers created equal?, arXiv 1902.01996.
"""

from collections.abc import Sequence

import pandas as pd
from torch import Tensor, nn

from fedsim.analysis.mixing.groups import Groups, named_groups
from fedsim.analysis.mixing.mixed_models import MAX_MEMORY, MixedModels
from fedsim.analysis.mixing.mixes import Mix, Normalisation
from fedsim.analysis.mixing.paired import mean_and_error
from fedsim.models.layers import Layers
from fedsim.models.params import Params, fit, fit_all
from fedsim.training.evaluation import Criterion, cross_entropies


def criticality(
    model: nn.Module,
    states: Sequence[Params],
    start: Params,
    inputs: Tensor,
    targets: Tensor,
    *,
    groups: Groups = "layers",
    normalisation: Normalisation = "interpolate",
    calibration: Tensor | None = None,
    criterion: Criterion = cross_entropies,
    threads: int = 1,
    max_memory: int = MAX_MEMORY,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure each model with one group of its layers put back to what it was at the start.

    Parameters
    ----------
    model, states, inputs, targets, groups, calibration, criterion, threads, max_memory, seed
        As in `fedsim.analysis.barriers.barriers`.
    start
        State dict that the models started from, such as a round's.
    normalisation
        ``interpolate`` puts running statistics back with their layer, ``base`` keeps them, ``recompute`` takes those
        on ``calibration``.

    Returns
    -------
    pandas.DataFrame
        One row per group and model: ``group, base, n, loss, error`` with means over the n examples, and
        ``loss_own_base`` and ``error_own_base``, minus the model's own, with paired standard errors ``_se``.

    Raises
    ------
    ValueError
        If there is no state, a state or the start does not fit the model, or a layer pattern matches nothing.
    """
    named = named_groups(Layers.of(model), groups, seed)
    fitted = [*fit_all(model, states), fit(model, start, "start")]
    models = MixedModels(
        model,
        fitted,
        normalisation=normalisation,
        calibration=calibration,
        criterion=criterion,
        threads=threads,
        max_memory=max_memory,
    )
    mixes = [
        Mix(group, frozenset(members), base, len(states), 1.0)
        for group, members in named.items()
        for base in range(len(states))
    ]
    recipes = {mix: models.recipe(mix) for mix in mixes}
    own = [models.own(base) for base in range(len(states))]
    evaluated = models.evaluate([*own, *recipes.values()], inputs, targets)
    rows = []
    for mix in mixes:
        reset, before = evaluated[recipes[mix]], evaluated[own[mix.base]]
        loss, loss_se = mean_and_error(reset.losses - before.losses)
        error, error_se = mean_and_error(reset.errors - before.errors)
        rows.append(
            {
                "group": mix.group,
                "base": mix.base,
                "n": reset.n,
                "loss": reset.loss,
                "error": float(reset.errors.mean()),
            }
            | {"loss_own_base": loss, "loss_own_base_se": loss_se}
            | {"error_own_base": error, "error_own_base_se": error_se}
        )
    return pd.DataFrame(rows)
