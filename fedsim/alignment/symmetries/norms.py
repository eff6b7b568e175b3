"""Scales of norms moved into the layers that read them, so that what is between the norms can be rotated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A scale that differs from 1 by less is rounding, of an average of scales that are 1.
TOLERANCE = 1e-5
# A smaller scale counts as 0: biases are divided by it.
SMALLEST = 1e-12


@dataclass(frozen=True)
class Norm:
    """A norm whose scale the layers that read it can take.

    Parameters
    ----------
    weight, bias
        Keys of its scale, and of its bias if it has one.
    readers
        Key and dimension of each weight that its outputs are multiplied by, and that nothing else is.
    """

    weight: str
    bias: str | None
    readers: tuple[tuple[str, int], ...]

    @property
    def keys(self) -> set[str]:
        """Keys of all tensors that change when the scale is absorbed."""
        return {self.weight, *(() if self.bias is None else (self.bias,)), *(key for key, _ in self.readers)}


def absorb_norms(params: Mapping[str, Tensor], norms: Sequence[Norm]) -> dict[str, Tensor]:
    """Return a model that computes the same with norms whose scales are 1.

    With scale w and bias b of a norm, and a weight W that reads it, w becomes 1, b becomes b / w, and W becomes
    W diag(w). All shapes stay.

    Parameters
    ----------
    params
        Whole model.
    norms
        Norms of `fedsim.alignment.symmetries.permutations.Spec`.

    Raises
    ------
    ValueError
        If a scale has an entry that is 0 or not finite.
    """
    absorbed = dict(params)
    for norm in norms:
        scale = absorbed[norm.weight].double()
        if not scale.isfinite().all():
            raise ValueError(f"{norm.weight} has an entry that is not finite; match models that have not diverged")
        if not (scale.abs() > SMALLEST).all():
            raise ValueError(
                f"{norm.weight} has an entry that is 0, so that what follows cannot take the scale; match by "
                "head-rotations, which leave it where it is: rotation_spec(model, inputs, stream=False)"
            )
        if bool((scale == 1).all()):
            continue
        absorbed[norm.weight] = torch.ones_like(absorbed[norm.weight])
        if norm.bias is not None:
            absorbed[norm.bias] = (absorbed[norm.bias].double() / scale).to(absorbed[norm.bias].dtype)
        for key, dimension in norm.readers:
            value = absorbed[key].double().movedim(dimension, -1) * scale
            absorbed[key] = value.movedim(-1, dimension).contiguous().to(absorbed[key].dtype)
    return absorbed


def absorbed_part(params: Mapping[str, Tensor], norms: Sequence[Norm]) -> Mapping[str, Tensor] | None:
    """Return a part of a model whose norms have scales of 1, itself if they have.

    It is None if a scale cannot be absorbed, as it has an entry that is 0 or what reads its norm is in no part.
    """
    scaled = [norm for norm in norms if norm.weight in params and not _is_multiple(params[norm.weight], 1)]
    if not scaled:
        return params
    try:
        return absorb_norms(params, scaled) if all(norm.keys <= params.keys() for norm in scaled) else None
    except ValueError:
        return None


def check_absorbed(params: Mapping[str, Tensor], norms: Sequence[Norm], *, multiple: bool = False) -> None:
    """Check that the scales of norms are 1, as far as a model or a part of one has them.

    Parameters
    ----------
    multiple
        Whether it may be a multiple of such a model, whose scales are all equal.

    Raises
    ------
    ValueError
        If one is not.
    """
    for norm in norms:
        if norm.weight not in params:
            continue
        scale = params[norm.weight]
        if not _is_multiple(scale, scale[0] if multiple else 1):
            raise ValueError(
                f"{norm.weight} is not 1, and units around it cannot be rotated; move the scales of norms into the "
                "layers after them first: absorb_norms(params, spec.norms)"
            )


def _is_multiple(scale: Tensor, of_ones: Tensor | float) -> bool:
    return bool(((scale.double() - of_ones).abs() <= TOLERANCE).all())
