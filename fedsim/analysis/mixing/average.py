"""The weighted average of models that are measured."""

from collections.abc import Sequence

import torch

from fedsim.models.averaging import weighted_mean
from fedsim.models.params import Params, as_kind_of, as_real, is_finite


def average_of(fitted: Sequence[Params], weights: Sequence[float] | None = None) -> Params:
    """Return the weighted average of models, whose integer entries are those of the first.

    Raises
    ------
    ValueError
        If there is no model, or the weights do not fit the models.
    """
    real = [{key: as_real(value) for key, value in state.items()} for state in fitted]
    average = weighted_mean(real, [1.0] * len(fitted) if weights is None else weights)
    # The mean of infinities is NaN, and masks that all models share are infinite.
    for key in [key for key, value in average.items() if not is_finite({key: value})]:
        if all(torch.equal(state[key], real[0][key]) for state in real):
            average[key] = real[0][key]
    return {key: as_kind_of(average[key], value) if key in average else value for key, value in fitted[0].items()}
