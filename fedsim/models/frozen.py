"""Frozen tensors: the part of a model that is no part of its state.

A parameter that does not require a gradient when the model is built is frozen. It belongs to the architecture, like a
kernel size: nothing trains it, and no state dict of ours holds it, so that it is neither sent nor stored per client.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from fedsim.models.norms import NORM_TYPES
from fedsim.models.tensors import is_same

SETTLED = "fedsim_layers"


class HasFrozenKeys(Protocol):
    """What `settle_` attaches to a model: its layers."""

    @property
    def frozen_keys(self) -> frozenset[str]:
        """State-dict keys of all frozen tensors, under each of their names."""


def settle_(model: nn.Module, layers: HasFrozenKeys) -> None:
    """Attach ``layers`` to a model, which they describe from now on, also in its copies and while parts of it train."""
    # Among the plain attributes: in no state dict, and copied with the model.
    vars(model)[SETTLED] = layers


def unsettle_(model: nn.Module) -> None:
    """Undo `settle_`."""
    vars(model).pop(SETTLED, None)


def frozen_keys(model: nn.Module) -> frozenset[str]:
    """Return the state-dict keys of a model's frozen tensors, each under all its names.

    These are the parameters that do not require a gradient, and all buffers of a normalisation module whose parameters
    are all frozen: its statistics stay as they are. A model none of whose parameters requires a gradient has been
    prepared for evaluation, and nothing of it is frozen.
    """
    settled: HasFrozenKeys | None = vars(model).get(SETTLED)
    if settled is not None:
        return settled.frozen_keys
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return frozenset()
    frozen = {key for key, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
    for name, module in model.named_modules(remove_duplicate=False):
        own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        if is_norm(module) and own and not any(own):
            frozen |= {f"{name}.{key}".lstrip(".") for key in module.state_dict()}
    return frozenset(frozen)


def frozen_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's frozen tensors by their first state-dict keys; they are the model's, not copies."""
    keys, found = frozen_keys(model), dict[int, str]()
    tensors = {key: value for key, value in model.state_dict(keep_vars=True).items() if key in keys}
    return {key: value for key, value in tensors.items() if found.setdefault(id(value), key) == key}


def replace_frozen_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Let a model use these tensors, by their first keys, in place of its own frozen ones; nothing is copied."""
    for key, value in frozen_of(model).items():
        value.data = tensors[key]


def adopt_frozen_(model: nn.Module, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give a model the frozen tensors that given states have.

    Parameters
    ----------
    states
        State dicts by their names in errors; each may lack frozen tensors.

    Raises
    ------
    ValueError
        If two of them have different values of one, or a shape is not the model's.
    """
    for key, own in frozen_of(model).items():
        given = {name: state[key] for name, state in states.items() if key in state}
        for name, value in given.items():
            first = next(iter(given))
            if value.shape != own.shape or not is_same(value.to(own), given[first].to(own)):
                raise ValueError(
                    f"{name} and {first} differ in {key!r}, which is frozen; let it require a gradient to mix it"
                )
        if given:
            own.data = next(iter(given.values())).to(own)


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Return the normalisation modules whose statistics are frozen."""
    keys = frozen_keys(model)
    named = model.named_modules() if keys else ()
    return [m for name, m in named if is_norm(m) and f"{name}.running_mean".lstrip(".") in keys]


def train_mode_(model: nn.Module) -> None:
    """Set a model to training mode, except that frozen statistics stay as they are."""
    model.train()
    for norm in frozen_norms(model):
        norm.eval()


def is_norm(module: nn.Module | None) -> bool:
    """Whether a module is a normalisation."""
    # torchvision's and detectron2's frozen batch normalisation are other classes, which take a second to import.
    return isinstance(module, NORM_TYPES) or type(module).__name__.startswith("FrozenBatchNorm")
