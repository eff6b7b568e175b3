"""The variance of the entries of each tensor of a model, about the tensor's mean."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fedsim.models.params import Params, as_real

BLOCK = 2**15  # entries that torch sums on one thread, so that a sum does not depend on the number of threads
HELD = 2**18  # entries of a tensor that are held in float64 for both passes: a core's cache holds them


def variances(params: Params, keys: Iterable[str]) -> dict[str, float]:
    """Return the variance of the entries of some tensors, normalised by their number; those of one entry have none.

    Complex entries count as pairs of real ones.
    """
    chosen = {key: as_real(params[key].detach()).reshape(-1) for key in keys if params[key].numel() > 1}
    if not chosen:
        return {}
    found = torch.stack([_variance(value) for value in chosen.values()])  # one transfer from a device
    return dict(zip(chosen, found.tolist(), strict=True))


def constant_keys(params: Params) -> frozenset[str]:
    """Return the keys of the tensors whose entries are all equal."""
    return frozenset(
        key for key, value in params.items() if value.numel() and bool((value == value.flatten()[0]).all())
    )


def _variance(values: Tensor) -> Tensor:
    """Return the variance in float64, by two passes that cost far less than torch.var."""
    if len(values) <= BLOCK:
        own = values.double()
        return (own - own.sum() / len(values)).square_().sum() / len(values)
    if len(values) <= HELD:
        held = values.to(torch.float64, copy=True)
        mean = _sum(held.split(BLOCK)) / len(values)
        return _sum(held.sub_(mean).square_().split(BLOCK)) / len(values)
    blocks = values.split(BLOCK)
    mean = _sum(block.double() for block in blocks) / len(values)
    return _sum((block.double() - mean).square_() for block in blocks) / len(values)


def _sum(blocks: Iterable[Tensor]) -> Tensor:
    return torch.stack([block.sum() for block in blocks]).sum()
