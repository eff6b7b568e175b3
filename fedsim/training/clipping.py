"""Gradients clipped by their norm."""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from fedsim.models.params import Params

# As in `torch.nn.utils.clip_grad_norm_`.
TINY = 1e-6


def clipped(gradients: Params, clip_norm: float, *, stacked: bool) -> Params:
    """Return the gradients with a norm, over all of them together, of at most ``clip_norm``.

    Parameters
    ----------
    stacked
        Whether they have a first dimension of members, each of which has a norm of its own.
    """
    if not gradients:
        return gradients
    norms = [vector_norm(value.reshape(len(value) if stacked else 1, -1), dim=1) for value in gradients.values()]
    shares = (clip_norm / (vector_norm(torch.stack(norms), dim=0) + TINY)).clamp(max=1)
    return {name: value * _spread(shares, value, stacked=stacked) for name, value in gradients.items()}


def _spread(shares: Tensor, value: Tensor, *, stacked: bool) -> Tensor:
    return shares.view(-1, *[1] * (value.ndim - 1)).to(value.dtype) if stacked else shares[0].to(value.dtype)
