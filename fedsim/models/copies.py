"""Copies of models, with the same weights or with others."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedsim.models.frozen import frozen_of
from fedsim.models.params import Params, load_state_
from fedsim.models.tensors import tensors_in

Module = TypeVar("Module", bound=nn.Module)


def copy_of(model: Module, *, shares_parameters: bool = False, shares_frozen: bool = True) -> Module:
    """Return a deep copy of a model that shares its frozen tensors, which nobody may write to or move.

    Tensors that the model has computed and kept have no history in the copy; torch itself does not copy them.

    Parameters
    ----------
    shares_parameters
        Whether the copy has the parameters themselves: for a short use in which nobody writes to them.
    shares_frozen
        Whether it shares the frozen tensors; if not, it may be moved to another device.
    """
    held = (each for module in model.modules() for each in tensors_in(vars(module)))
    memo = {id(each): each.detach().clone() for each in held if not each.is_leaf}
    shared: list[Tensor] = list(model.parameters()) if shares_parameters else []
    shared += frozen_of(model).values() if shares_frozen else []
    copied = copy.deepcopy(model, memo | {id(value): value for value in shared})
    for module in copied.modules():
        if isinstance(module, torch.jit.ScriptModule):
            _make_leaves_(module)
    return copied


def loaded(model: nn.Module, params: Params, *, resizes: bool = False) -> nn.Module:
    """Return a copy of a model in eval mode with all entries of another state.

    Parameters
    ----------
    resizes
        Whether entries may have other shapes than the model's, as factors of another rank do.
    """
    net = copy_of(model).eval()
    for key, value in net.state_dict(keep_vars=True).items() if resizes else ():
        if key in params and params[key].shape != value.shape:
            value.data = params[key].clone()
    load_state_(net, params)
    return net


def _make_leaves_(compiled: nn.Module) -> None:
    """Let the parameters of a compiled module be leaves: as torch copies it, they are computed from the original's."""
    for name, parameter in list(compiled.named_parameters(recurse=False)):
        if not parameter.is_leaf:
            setattr(compiled, name, nn.Parameter(parameter.detach()))
