"""The variance of the entries of each tensor of a model, about the tensor's mean."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fedsim.models.params import Params, as_real

BLOCK = 2**15  # entries that torch sums on one thread, so that a sum does not depend on the number of threads


def variances(params: Params, keys: Iterable[str]) -> dict[str, float]:
    """Return the variance of the entries of some tensors, normalised by their number; those of one entry have none.

    Complex entries count as pairs of real ones.
    """
    chosen = {key: as_real(params[key].detach()) for key in keys if params[key].numel() > 1}
    if not chosen:
        return {}
    found = torch.stack([_variance(value) for value in chosen.values()])  # one transfer from a device
    return dict(zip(chosen, found.tolist(), strict=True))


def _variance(value: Tensor) -> Tensor:
    blocks = value.reshape(-1).split(BLOCK)
    parts = [torch.var_mean(block.double(), correction=0) for block in blocks]
    spread, means = (torch.stack(each) for each in zip(*parts, strict=True))
    shares = torch.tensor([len(block) / value.numel() for block in blocks], dtype=means.dtype, device=means.device)
    return (shares * (spread + (means - (shares * means).sum()).square())).sum()
