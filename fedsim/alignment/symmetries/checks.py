"""Tests of whether permuted units leave the outputs of a model unchanged."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.alignment.symmetries.permutations import Permutation, Spec, moved, permute, random_permutation
from fedsim.alignment.symmetries.rotations import SUFFIX
from fedsim.models.copies import copy_of
from fedsim.models.params import Params


def check_spec(
    model: nn.Module, params: Params, spec: Spec, inputs: Tensor, rng: np.random.Generator, tolerance: float = 1e-4
) -> None:
    """Check that random permutations and rotations of units, drawn from the symmetries of ``spec``, leave the outputs.

    Parameters
    ----------
    params
        Entries of `fedsim.models.params.state_of`, with values that distinguish units: not those of a new model, in
        which all biases may be equal.
    inputs
        Inputs as the model takes them, on its device.
    tolerance
        Largest difference of outputs by rounding, relative to the largest output.

    Raises
    ------
    ValueError
        If the outputs change, with the orders that change them, or the shape of an entry is not that of ``spec``.
    """
    _check_shapes(params, spec)
    model = copy_of(model).eval()
    expected = _outputs(model, params, inputs)
    drawn = _moving(spec, rng)
    if _difference(model, permute(params, spec, drawn), inputs, expected) <= tolerance:
        return
    for symmetry in spec.symmetries:
        alone = {name: value for name, value in drawn.items() if name.removesuffix(SUFFIX) in symmetry.widths}
        change = _difference(model, permute(params, spec, alone), inputs, expected)
        if not change <= tolerance:
            names = " and ".join(map(repr, symmetry.widths))
            raise ValueError(
                f"the order {names} changes the outputs by {change:.1e} of the largest, which must be at most "
                f"{tolerance:.1e}: leave it out of the spec, or derive the spec again"
            )
    raise ValueError(
        "the orders of the spec change the outputs together, though none does alone: derive the spec again"
    )


def _check_shapes(params: Params, spec: Spec) -> None:
    for key, value in params.items():
        axes = spec.axes.get(key)
        shape = None if axes is None else tuple(sum(segment.size for segment in axis) for axis in axes)
        if value.is_floating_point() and shape != tuple(value.shape):
            said = "nothing" if shape is None else shape
            raise ValueError(f"the spec has {said} for {key!r}, which has the shape {tuple(value.shape)}")


def _moving(spec: Spec, rng: np.random.Generator) -> Permutation:
    """Draw a permutation that moves some units of each order, unless it has a single one."""
    drawn: Permutation = {}
    for symmetry in spec.symmetries:
        alone, turning = replace(spec, symmetries=(symmetry,)), {name: width for _, name, width in symmetry.parts}
        several = [name for name, size in alone.sizes.items() if size > max(1, turning.get(name, 0))]
        found = random_permutation(alone, rng)
        while not all(moved(found)[name] for name in several):
            found = random_permutation(alone, rng)
        drawn |= found
    return drawn


def _outputs(model: nn.Module, params: Params, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return functional_call(model, params, (inputs.clone(),))  # which the model may change in place


def _difference(model: nn.Module, params: Params, inputs: Tensor, expected: Tensor) -> float:
    largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((_outputs(model, params, inputs) - expected).abs().max() / largest)
