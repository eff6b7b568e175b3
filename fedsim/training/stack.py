"""Many sets of parameters of one model, each tensor stacked along a new first dimension."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from fedsim.models.params import Params


def stack(members: Sequence[Params], device: torch.device) -> Params:
    """Return each entry of all members as one new tensor, [members, ...], on ``device``."""
    return {key: _stacked([member[key] for member in members], device) for key in members[0]}


def _stacked(values: Sequence[Tensor], device: torch.device) -> Tensor:
    first = values[0].detach()
    if all(value is values[0] for value in values):  # members that share a tensor from the server copy it once
        return first.to(device).expand(len(values), *first.shape).clone(memory_format=torch.contiguous_format)
    return torch.stack([value.detach() for value in values]).to(device)


def member_of(stacked: Params, member: int) -> Params:
    """Return one member's entries, as views."""
    return {key: value[member] for key, value in stacked.items()}


def forward_of(model: nn.Module) -> Callable[[Params, Tensor], Tensor]:
    """Return a function of stacked parameters and inputs, [members, n, ...], to the outputs, [members, n, ...].

    Buffers that the model changes are changed in the stack. Drawing from torch's global random state is an error.
    """
    return over_members(lambda params, inputs: functional_call(model, params, (inputs,)))


def over_members(function: Callable[..., Any], in_dims: Any = 0) -> Callable[..., Any]:
    """Return a function of one member as a function of many, whose tensors are stacked along a first dimension.

    Drawing from torch's global random state is an error.
    """
    vectorised = torch.vmap(function, in_dims=in_dims, randomness="error")

    def over_all(*stacked: Any) -> Any:
        with _PlainAttention():
            return vectorised(*stacked)

    return over_all


class _PlainAttention(TorchFunctionMode):
    """Computes attention on a CPU step by step, as vmap would run torch's kernel member by member, with a warning."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].device.type != "cpu":
            return func(*args, **kwargs)
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
