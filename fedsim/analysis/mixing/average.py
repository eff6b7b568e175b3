"""The models that a measurement compares: states of one architecture and, last, their weighted average."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from fedsim.models.averaging import weighted_mean
from fedsim.models.params import Params, fit_all


def with_average(
    model: nn.Module,
    states: Sequence[Params],
    weights: Sequence[float] | None = None,
    against: Literal["average", "pairs"] = "average",
) -> list[Params]:
    """Return the states and, last, their weighted average, whose integer entries are those of the first.

    Parameters
    ----------
    model
        Architecture of the states; a tensor with several names is once in the result.
    weights
        One positive number per state; by default all alike.
    against
        What the states are compared with; ``pairs`` needs at least two states.

    Raises
    ------
    ValueError
        If there are too few states, one does not fit the model, or the weights do not fit the states.
    """
    fitted = fit_all(model, states, 2 if against == "pairs" else 1)
    return [*fitted, average_of(fitted, weights)]


def average_of(fitted: Sequence[Params], weights: Sequence[float] | None = None) -> Params:
    """Return the weighted average of models, whose integer entries are those of the first.

    Raises
    ------
    ValueError
        If there is no model, or the weights do not fit the models.
    """
    average = weighted_mean(fitted, [1.0] * len(fitted) if weights is None else weights)
    return {key: average.get(key, value) for key, value in fitted[0].items()}
