"""Many sets of parameters of one model, each tensor stacked along a new first dimension."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.models.params import Params
from fedsim.training.vectorisable import Vectorisable


def stack(members: Sequence[Params], device: torch.device) -> Params:
    """Return each entry of all members as one new tensor, [members, ...], on ``device``.

    Members' tensors may be on several devices: what a client has kept may come from the disk, and the rest does not.
    """
    return {key: _stacked([member[key] for member in members], device) for key in members[0]}


def _stacked(values: Sequence[Tensor], device: torch.device) -> Tensor:
    first = values[0].detach()
    if all(value is values[0] for value in values):  # members that share a tensor from the server copy it once
        return first.to(device).expand(len(values), *first.shape).clone(memory_format=torch.contiguous_format)
    return torch.stack([value.detach().to(device) for value in values])


def member_of(stacked: Params, member: int) -> Params:
    """Return one member's entries, as views."""
    return {key: value[member] for key, value in stacked.items()}


def forward_of(model: nn.Module) -> Callable[[Params, Tensor], Tensor]:
    """Return a function of stacked parameters and inputs, [members, n, ...], to the outputs, [members, n, ...].

    Buffers that the model changes are changed in the stack. Drawing from torch's global random state is an error.
    """
    return over_members(lambda params, inputs: functional_call(model, params, (inputs,)))


def over_members(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of one member as a function of many, whose tensors are stacked along a first dimension.

    Drawing from torch's global random state is an error.
    """
    vectorised = torch.vmap(function, randomness="error")

    def over_all(*stacked: Any) -> Any:
        with Vectorisable():
            return vectorised(*stacked)

    return over_all
