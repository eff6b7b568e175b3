"""The entries of a model's state, found once as long as the model stays as it is.

`torch.nn.Module.state_dict` and ``load_state_dict`` go through all modules and build each key again. That takes longer
than to copy a small model, and every client needs it several times in a round.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedsim.models.frozen import SETTLED, HasFrozenKeys

ENTRIES = "fedsim_entries"
# Hooks and methods by which a module may have other entries than its parameters and buffers, or load them otherwise.
HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
WRITING = ("state_dict", "_save_to_state_dict", "get_extra_state")
READING = ("load_state_dict", "_load_from_state_dict", "set_extra_state")


class Entries:
    """The tensors of a model's state by key, without frozen ones and with a tied one only under its first key.

    The model itself has them, as what it refers to may refer to it; a copy of the model finds its own.

    Parameters
    ----------
    tensors
        Parameters and buffers themselves, in the order of the state dict.
    """

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self._settled = vars(model)[SETTLED]
        parts = list(_parts(model))
        self._held = [tuple(part.values()) for part in parts]  # so that no other object has their identities
        self._parts = [(part, list(map(id, part.values()))) for part in parts]

    def are_of(self, model: nn.Module) -> bool:
        """Tell whether the model still has the same modules, parameters and buffers."""
        if vars(model).get(SETTLED) is not self._settled:
            return False
        return [list(map(id, part.values())) for part, _ in self._parts] == [each for _, each in self._parts]

    def __deepcopy__(self, memo: object) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def entries_of(model: nn.Module) -> Mapping[str, Tensor] | None:
    """Return the tensors of a model's state, or None if only torch itself can tell or load them.

    That is so for models whose layers are not settled (`fedsim.models.frozen.settle_`), and those with modules that
    change how they are saved or loaded.
    """
    if SETTLED not in vars(model):
        return None
    known: Entries | None = vars(model).get(ENTRIES)
    if known is None or not known.are_of(model):
        if not _is_plain(model):
            return None
        layers: HasFrozenKeys = vars(model)[SETTLED]
        named = model.state_dict(keep_vars=True)
        first: dict[int, str] = {}
        tensors = {
            key: value
            for key, value in named.items()
            if first.setdefault(id(value), key) == key and key not in layers.frozen_keys
        }
        vars(model)[ENTRIES] = known = Entries(model, tensors)
    return known.tensors


def _is_plain(model: nn.Module) -> bool:
    return all(
        not isinstance(module, torch.jit.ScriptModule)  # whose tensors are other objects each time
        and not any(getattr(module, hooks, None) for hooks in HOOKS)
        and all(getattr(type(module), name) is getattr(nn.Module, name) for name in WRITING)
        and all(getattr(type(module), name) in _known_readers(name) for name in READING)
        for module in model.modules()
    )


def _known_readers(name: str) -> tuple[Any, ...]:
    # That of batch normalisation adds a counter to files of old versions of torch, and is torch's own otherwise.
    return getattr(nn.Module, name), getattr(_NormBase, name)


def _parts(model: nn.Module) -> Iterator[Mapping[str, Any]]:
    for module in model.modules():
        yield from (module._parameters, module._buffers, module._modules)
