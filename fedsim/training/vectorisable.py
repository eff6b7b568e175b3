"""Functions of torch in forms that `torch.vmap` vectorises, with the same results."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import (
    embedding,
    embedding_bag,
    multi_head_attention_forward,
    scaled_dot_product_attention,
)
from torch.overrides import TorchFunctionMode


class Vectorisable(TorchFunctionMode):
    """Replaces functions that vmap would run member by member, refuse, or differentiate wrongly."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in REPLACED:
            return REPLACED[func](*args, **kwargs)
        if args and isinstance(args[0], Tensor) and args[0].device.type != "cpu":
            return func(*args, **kwargs)
        # vmap would run torch's kernel of attention on a CPU member by member, with a warning.
        if func is multi_head_attention_forward and not kwargs.get("need_weights", True):
            return func(*args, **kwargs | {"need_weights": True})[0], None  # a path without the kernel
        if func is scaled_dot_product_attention and not kwargs.get("dropout_p") and not kwargs.get("enable_gqa"):
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the result of torch's function of these parameters, without dropout and grouped queries."""
    scores = (query @ key.transpose(-2, -1)) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        hidden = attn_mask.logical_not() if attn_mask.dtype == torch.bool else None
        scores = scores + attn_mask if hidden is None else scores.masked_fill(hidden, -math.inf)
    return scores.softmax(-1) @ value


def _embedding(
    input: Tensor,  # noqa: A002 (torch's name, which may be given as a keyword)
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Return the result of torch's function of these parameters; the gradient is dense."""
    rows = embedding(input, weight, None, max_norm, norm_type, scale_grad_by_freq)
    if padding_idx is None:
        return rows
    # vmap would keep the gradient from the padding of the first member only.
    return torch.where((input == padding_idx % len(weight)).unsqueeze(-1), rows.detach(), rows)


def _torch_embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    return _embedding(indices, weight, None if padding_idx < 0 else padding_idx, scale_grad_by_freq=scale_grad_by_freq)


def _bag(
    input: Tensor,  # noqa: A002 (torch's name, which may be given as a keyword)
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Return the result of torch's function of these parameters; the gradient is dense."""
    norm = max_norm, norm_type, scale_grad_by_freq
    if offsets is not None or padding_idx is not None or mode == "max":  # run member by member, with a warning
        rest = per_sample_weights, include_last_offset, padding_idx
        return embedding_bag(input, weight, offsets, *norm, mode, False, *rest)
    rows = embedding(input, weight, None, *norm)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    total = rows.sum(-2)
    return total / max(1, input.shape[-1]) if mode == "mean" else total


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Return vectors of the lengths ``g`` and the directions ``v``, along all dimensions but one."""
    others = [each for each in range(v.dim()) if each != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))


REPLACED: dict[Any, Callable[..., Tensor]] = {
    embedding: _embedding,
    torch.embedding: _torch_embedding,
    embedding_bag: _bag,
    torch._weight_norm: _weight_norm,
}
