"""The models that a measurement compares: states that fit the model and, last, their weighted average."""

from collections.abc import Sequence

from torch import nn

from fedsim.analysis.mixes import Against
from fedsim.averaging import weighted_mean
from fedsim.params import Params, state_of


def with_average(
    model: nn.Module,
    states: Sequence[Params],
    weights: Sequence[float] | None = None,
    against: Against = "average",
) -> list[Params]:
    """Return the states and, last, their weighted average, whose integer entries are those of the first.

    Parameters
    ----------
    model
        What the states must fit; a tensor that it has under several names stands once in the result.
    weights
        One positive number per state; by default all alike.
    against
        What the states are compared with; ``pairs`` needs two of them.

    Raises
    ------
    ValueError
        If there are too few states, one does not fit the model, or the weights do not fit the states.
    """
    fitted = fit_all(model, states, 2 if against == "pairs" else 1)
    average = weighted_mean(fitted, [1.0] * len(fitted) if weights is None else weights)
    return [*fitted, {key: average.get(key, value) for key, value in fitted[0].items()}]


def fit_all(model: nn.Module, states: Sequence[Params], at_least: int = 1) -> list[Params]:
    """Return states as `fit` does.

    Raises
    ------
    ValueError
        If there are too few states, or one does not fit the model.
    """
    if len(states) < at_least:
        number = "is 1 state" if len(states) else "are no states"
        raise ValueError(f"there {number}; this needs at least {at_least}")
    return [fit(model, state, f"state {number}") for number, state in enumerate(states)]


def fit(model: nn.Module, params: Params, name: str) -> Params:
    """Return a state dict with each tensor of the model once, under its first name.

    Parameters
    ----------
    name
        What the error calls it.

    Raises
    ------
    ValueError
        If an entry is missing or unknown, or has another shape than the model's.
    """
    like = state_of(model)
    missing, unknown = like.keys() - params.keys(), params.keys() - model.state_dict().keys()
    for verb, keys in (("lacks", missing), ("has", unknown)):
        if keys:
            raise ValueError(f"{name} {verb} the entry {min(keys)!r}; it must be a state dict of the model")
    for key, value in like.items():
        if params[key].shape != value.shape:
            shapes = f"{tuple(params[key].shape)} instead of {tuple(value.shape)}"
            raise ValueError(f"{name} has {key} of shape {shapes}; it must be a state dict of the model")
    return {key: params[key] for key in like}
