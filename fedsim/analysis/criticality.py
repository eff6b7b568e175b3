"""Criticality of layers: the cost of resetting a model to where it started, layer by layer.

Zhang, Bengio and Singer 2022, Are all layers created equal?, arXiv 1902.01996.
"""

import pandas as pd

from fedsim.analysis.arguments import check_state
from fedsim.analysis.calls import of_models
from fedsim.analysis.data import Data
from fedsim.analysis.mixing.groups import Groups, named_groups
from fedsim.analysis.mixing.mixes import Mix
from fedsim.analysis.mixing.paired import difference_columns
from fedsim.analysis.models import Models
from fedsim.models.params import Params, fit


@of_models
def criticality(models: Models, start: Params, data: Data, *, groups: Groups = "layers") -> pd.DataFrame:
    """Measure each model with one group of its layers reset to what it was at the start.

    Parameters
    ----------
    models
        Models; with ``normalisation`` ``interpolate``, running statistics are reset with their layer, with ``base``
        they are kept, and with ``recompute`` they are those on ``calibration``.
    start
        State dict that the models started from, such as a round's.
    groups
        As in `fedsim.analysis.barriers.barriers`.

    Returns
    -------
    pandas.DataFrame
        One row per group and model: ``group, base, n, loss, error`` with means over the n examples, and
        ``loss_own_base`` and ``error_own_base``, minus the model's own, with paired standard errors
        ``_se``, for the ``sampling`` of `Data`.

    Raises
    ------
    ValueError
        If there is no state, a state or the start does not fit the model, or a layer pattern matches nothing.
    """
    check_state("start", start)
    named = named_groups(models.layers, groups, models.seed)
    states = [*models.fitted, fit(models.model, start, "start")]
    mixed = models.mixed.of(states)
    mixes = [
        Mix(group, frozenset(members), base, len(models), 1.0)
        for group, members in named.items()
        for base in range(len(models))
    ]
    recipes = {mix: mixed.recipe(mix) for mix in mixes}
    own = [mixed.own(base) for base in range(len(models))]
    evaluated = mixed.evaluate([*own, *recipes.values()], data)
    sampling, rows = data.sampling, []
    for mix in mixes:
        reset, before = evaluated[recipes[mix]], evaluated[own[mix.base]]
        own_values = {"group": mix.group, "base": mix.base, "n": reset.n, "loss": reset.loss, "error": reset.error}
        differences = reset.losses - before.losses, reset.errors - before.errors
        rows.append(own_values | difference_columns("own_base", *differences, sampling))
    return pd.DataFrame(rows)
