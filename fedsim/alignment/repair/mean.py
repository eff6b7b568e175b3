"""Repair of the mean of models that were merged, in each of the ways by name."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from fedsim.alignment.repair.biases import scale_biases
from fedsim.alignment.repair.repairing import repair, reset_statistics
from fedsim.alignment.repair.sites import traced
from fedsim.alignment.repair.variance import correct_variances
from fedsim.models.layers import Layers
from fedsim.models.params import Params, state_of

Repair = Literal["none", "reset", "repair", "rescale", "reshift", "biases", "variance"]
BY_WEIGHTS = ("none", "variance")  # need no inputs, and take parts of models too


def check_repair(kind: Repair, model: nn.Module, inputs: Tensor | None) -> None:
    """Check that a model can be repaired in this way.

    Parameters
    ----------
    inputs
        Two or more inputs as the model takes them; the ways `BY_WEIGHTS` need none.

    Raises
    ------
    ValueError
        If ``reset`` finds no running statistics, or another way cannot trace the model.
    """
    if kind in BY_WEIGHTS:
        return
    assert inputs is not None
    if kind == "reset" and not any(layer.kind == "norm" and layer.statistics for layer in Layers.of(model)):
        raise ValueError("repair = 'reset' needs running statistics and the model has none; use 'repair' or 'none'")
    if kind != "reset":
        try:
            traced(model, state_of(model), inputs)
        except ValueError as error:
            raise ValueError(f"repair = {kind!r}: {error} with repair = 'none'") from error


def repaired_mean(
    kind: Repair,
    model: nn.Module,
    mean: Params,
    members: Sequence[Params],
    weights: Sequence[float],
    inputs: Tensor | None,
) -> Params:
    """Return a mean of whole models with the members' moments of features, or what else ``kind`` gives it.

    Parameters
    ----------
    kind
        ``reset`` computes running statistics on the inputs. ``repair`` gives each channel the members' mean and
        standard deviation on these, ``reshift`` the mean and ``rescale`` the standard deviation only. ``biases``
        weights biases by depth, and ``variance`` gives each tensor the members' variance, both without data. ``none``
        leaves the mean as it is.
    weights
        Weight of each member in the mean.
    inputs
        Normalised inputs, shape [n, ...]; the ways `BY_WEIGHTS` need none.
    """
    if kind == "none":
        return mean
    if kind == "variance":
        return correct_variances(model, mean, members, weights=weights)
    assert inputs is not None
    if kind == "reset":
        return reset_statistics(model, mean, inputs)
    if kind == "biases":
        return scale_biases(model, mean, members, inputs, weights=weights)
    return repair(model, mean, members, inputs, weights=weights, kind=kind)
