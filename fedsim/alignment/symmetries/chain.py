"""Models whose layers follow each other, so that the neurons of one are the inputs of the next."""

from itertools import pairwise
from typing import Any

from torch import nn
from torch.fx import Node

from fedsim.alignment.symmetries.reader import graph_of
from fedsim.alignment.symmetries.rules import METHODS, POOLINGS, entrywise, rule_of_function, rule_of_module
from fedsim.models.asymmetry import is_asymmetric
from fedsim.models.layers import Layers
from fedsim.shortening import a_type

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check_chain(model: nn.Module, layers: Layers, method: str) -> None:
    """Check that a model is a chain of linear and convolutional layers, in the order of ``layers``.

    Parameters
    ----------
    method
        Name of the method, for the message.

    Raises
    ------
    ValueError
        If the model is not such a chain.
    """
    if problem := _problem(model, layers):
        raise ValueError(
            f"{method} needs linear and convolutional layers that follow each other, with only activations, pooling "
            f"and flattening between them, and {problem}; use for instance mlp, cnn, lenet5, or vgg11 without norm"
        )


def _problem(model: nn.Module, layers: Layers) -> str:
    if is_asymmetric(model):
        return "the model is asymmetric, so that there is nothing to match"
    modules = dict(model.named_modules())
    for layer in layers:
        module = modules.get(layer.name)
        if not isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            return f"the layer {layer.name!r} is {a_type(module)}"
        if getattr(module, "groups", 1) != 1:
            return f"the layer {layer.name!r} has groups = {module.groups}"
        if not {key for key, _ in module.named_parameters()} <= {"weight", "bias"}:
            return f"the weight of {layer.name!r} is computed from others, as by weight_norm"
    if layers.frozen_keys:
        return f"{min(layers.frozen_keys)!r} is frozen"
    if layers.aliases:
        return f"{min(layers.aliases)!r} is tied to another tensor"
    try:
        nodes = list(graph_of(model).nodes)
    except ValueError as error:
        return str(error)
    return _broken_at(nodes, modules, layers)


def _broken_at(nodes: list[Node], modules: dict[str, nn.Module], layers: Layers) -> str:
    """Return why the nodes of a trace are not a chain of all layers, or an empty text."""
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
    """Whether an operation treats all neurons alike; poolings treat all channels alike."""
    if module is not None:
        rule = rule_of_module(module)
    else:
        rule = METHODS.get(node.target) if isinstance(node.target, str) else rule_of_function(node.target)
    return rule is entrywise or (rule in POOLINGS.values() and not flat)


def _name(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
