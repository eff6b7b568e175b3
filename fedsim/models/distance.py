"""The L2 distance between two models, and the L2 norm of a part of one."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fedsim.models.params import Params, as_flat, as_real, moves

FLOAT32_RANGE = 1e-30, 1e30  # of a sum of squares that neither overflows nor loses terms that are too small
BLOCK, GPU_BLOCK = 2**18, 2**23  # elements: a core's cache holds a block, and a GPU is busy for longer than a launch


def distance(one: Params, other: Params, dtype: torch.dtype = torch.float64) -> float:
    """Return the L2 distance between the real and complex entries of two models, or parts of models.

    Parameters
    ----------
    one, other
        Entries with the same keys, shapes and dtypes; integers do not count.
    dtype
        Type of the sums: float64; or float32, which is faster if both are flat (`fedsim.models.params.flat_copy`) and
        of float32, with zeros for padding. Sums that leave its range are repeated in float64, as squares overflow long
        before the numbers do.

    Returns
    -------
    distance
        Not finite if an entry is not, or if the squares overflow float64 too.
    """
    if dtype == torch.float32 and list(one) == list(other):
        flat, reference = as_flat(one), as_flat(other)
        if flat is not None and reference is not None and _are_float32(flat, reference):
            total = _squares(flat, reference)
            if FLOAT32_RANGE[0] < total < FLOAT32_RANGE[1]:
                return math.sqrt(total)
            if total == 0 and torch.equal(flat, reference):
                return 0.0
    keys = [key for key, value in one.items() if moves(value)]
    return math.sqrt(sum(_squares(as_real(one[key]), as_real(other[key]), torch.float64) for key in keys))


def norm(values: Iterable[Tensor]) -> float:
    """Return the L2 norm of tensors together, summed in float64."""
    return float(sum(value.to(torch.float64).square().sum() for value in values)) ** 0.5


def _are_float32(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype == torch.float32 and one.shape == other.shape and one.device == other.device


def _squares(one: Tensor, other: Tensor, dtype: torch.dtype | None = None) -> float:
    """Return the sum of the squared differences; in their own type if not given."""
    size = GPU_BLOCK if one.is_cuda else BLOCK
    one, other = one.detach().reshape(-1), other.detach().reshape(-1).to(one.device)
    if one.numel() <= size:
        return _square(one, other, dtype).item()
    parts = zip(one.split(size), other.split(size), strict=True)
    return torch.stack([_square(mine, theirs, dtype) for mine, theirs in parts]).double().sum().item()


def _square(one: Tensor, other: Tensor, dtype: torch.dtype | None) -> Tensor:
    difference = one - other
    difference = difference if dtype is None else difference.to(dtype)
    return torch.dot(difference, difference)
