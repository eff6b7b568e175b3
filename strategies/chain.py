"""Models whose layers follow each other, so that the neurons of one are the inputs of the next."""

from itertools import pairwise
from typing import Any

from torch import nn
from torch.fx import Node, Tracer

from fedsim.models.layers import Layers

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What does the same to each neuron or channel, whatever their order.
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
POOLINGS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
FUNCTIONS = (
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign"),
    *("tanh", "sigmoid", "dropout"),
)
POOLING_FUNCTIONS = [f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for d in (1, 2, 3)]


def check_chain(model: nn.Module, layers: Layers, method: str) -> None:
    """Check that a model is a chain of linear and convolutional layers, in the order of ``layers``.

    Parameters
    ----------
    method
        Its name, for the message.

    Raises
    ------
    ValueError
        If it is not.
    """
    if problem := _problem(model, layers):
        raise ValueError(
            f"{method} needs linear and convolutional layers that follow each other, with only activations, pooling "
            f"and flattening between them, and {problem}; use for instance mlp, cnn, lenet5, or vgg11 without norm"
        )


def _problem(model: nn.Module, layers: Layers) -> str:
    modules = dict(model.named_modules())
    for layer in layers:
        module = modules.get(layer.name)
        if not isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            return f"the layer {layer.name!r} is a {type(module).__name__}"
        if getattr(module, "groups", 1) != 1:
            return f"the layer {layer.name!r} has groups = {module.groups}"
    if layers.aliases:
        return f"{min(layers.aliases)!r} is tied to another tensor"
    try:
        nodes = list(_Tracer().trace(model).nodes)
    except Exception as error:  # whatever a model's own code raises when it is traced
        return f"the model cannot be traced: {str(error).splitlines()[0]}"
    return _broken_at(nodes, modules, layers)


def _broken_at(nodes: list[Node], modules: dict[str, nn.Module], layers: Layers) -> str:
    """Return where the nodes of a trace are no chain of all layers; nothing if they are one."""
    previous: Any = None
    flat, seen = True, []
    for before, node in pairwise(nodes):
        if node.all_input_nodes != [before]:
            return f"{node.name!r} does not take what {before.name!r} gives alone"
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            seen.append(str(node.target))
            if previous is not None and not _follows(module, previous, flat):
                return f"the inputs of {seen[-1]!r} are not the outputs of {seen[-2]!r}, in their order"
            previous, flat = module, isinstance(module, nn.Linear)
        elif _is_flatten(node, module):
            flat = True
        elif 0 < len(seen) < len(layers) and not _commutes(node, module, flat=flat):
            return f"{node.name!r} is between them"
    return "" if seen == list(layers.names) else f"they are called as {', '.join(seen)}"


def _follows(module: Any, previous: Any, flat: bool) -> bool:
    outputs, inputs = previous.weight.shape[0], module.weight.shape[1]
    if isinstance(module, nn.Linear) and not isinstance(previous, nn.Linear):
        return flat and bool(inputs % outputs == 0)
    return isinstance(module, nn.Linear) == flat and bool(inputs == outputs)


def _is_flatten(node: Node, module: nn.Module | None) -> bool:
    if module is not None:
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    return _name(node) == "flatten" and (*node.args[1:], *node.kwargs.values()) == (1,)


def _commutes(node: Node, module: nn.Module | None, *, flat: bool) -> bool:
    """Tell whether an operation does the same to each neuron; poolings do to each channel."""
    if module is not None:
        return isinstance(module, ACTIVATIONS) or (isinstance(module, POOLINGS) and not flat)
    return _name(node) in FUNCTIONS or (_name(node) in POOLING_FUNCTIONS and not flat)


def _name(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


class _Tracer(Tracer):
    """Does not look into modules that are known."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known: tuple[Any, ...] = (nn.Linear, nn.Flatten, *CONVOLUTIONS, *ACTIVATIONS, *POOLINGS)
        return isinstance(m, known) or super().is_leaf_module(m, module_qualified_name)
