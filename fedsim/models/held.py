"""Held weights: part of a model's state that nothing trains and no client sends; the server alone changes them.

A held weight is a buffer of its module in place of a parameter, so that no optimizer sees it, while whatever copies,
loads, stores or mixes states has it.
"""

from torch import nn

HELD = "fedsim_held"


def hold_(module: nn.Module) -> None:
    """Make the weight of a module held."""
    weight = module.get_parameter("weight").detach()
    del module.weight
    module.register_buffer("weight", weight)
    # Among the plain attributes: in no state dict, and copied with the module.
    vars(module)[HELD] = True


def release_(module: nn.Module) -> None:
    """Undo `hold_`: the weight is a parameter again, frozen, and the first one."""
    if not vars(module).pop(HELD, False):
        return
    weight = nn.Parameter(module.get_buffer("weight"), requires_grad=False)
    del module.weight
    for name, value in {"weight": weight, **dict(module.named_parameters(recurse=False))}.items():
        if name != "weight":
            delattr(module, name)
        module.register_parameter(name, value)


def is_held(module: nn.Module | None) -> bool:
    """Whether the weight of a module is held."""
    return module is not None and HELD in vars(module)
