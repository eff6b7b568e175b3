"""Models whose units are put into the same places before they are measured."""

from dataclasses import replace

import pandas as pd

from fedsim.alignment.matched import match_models
from fedsim.analysis.data import Data
from fedsim.analysis.models import Models
from fedsim.seeds import rng


def match(models: Models, by: str, data: Data) -> tuple[Models, pd.DataFrame]:
    """Return models after matching, and the share of units of each that moved.

    Parameters
    ----------
    by
        As in `fedsim.alignment.matched.match_models`.
    data
        Examples for what does not match by weights alone.

    Raises
    ------
    ValueError
        If the units of the models cannot be matched.
    """
    drawn = rng(models.seed, "matching")
    matched = match_models(
        models.model,
        models.states,
        by,
        data.inputs,
        targets=data.targets,
        criterion=data.criterion,
        weights=models.weights,
        rng=drawn,
    )
    return replace(models, states=matched.states), matched.table()
