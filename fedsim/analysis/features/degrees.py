"""Powers of a common factor of all weights by which what a model computes grows."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from fedsim.models.graph import Operation
from fedsim.models.norms import NORM_TYPES

PRODUCTS = {"mul", "imul", "multiply", "matmul", "imatmul", "mm", "bmm", "einsum", "bilinear"}
WEIGHTED = {"linear", "conv1d", "conv2d", "conv3d"}  # products of their first two arguments
QUOTIENTS = {"truediv", "itruediv", "div", "divide", "truedivide"}
# What scaled inputs do not give a scaled result of: ReLU, leaky or not, does.
INHOMOGENEOUS = {
    *("softmax", "logsoftmax", "softmin", "scaleddotproductattention"),
    *("sigmoid", "logsigmoid", "hardsigmoid", "tanh", "hardtanh", "softsign", "relu6", "clamp", "clip", "erf"),
    *("gelu", "silu", "mish", "hardswish", "glu", "elu", "selu", "celu", "softplus", "threshold"),
    *("tanhshrink", "softshrink", "hardshrink", "softmax2d", "prelu", "exp", "log", "sin", "cos", "cumprod", "prod"),
    *("normalize", "layernorm", "groupnorm", "instancenorm", "rmsnorm"),  # as functions
}
SHAPES = {"size", "dim", "numel", "shape", "ndim", "dtype", "device"}


def degrees_of(operations: Sequence[Operation], root: nn.Module) -> dict[int, int]:
    """Return the power of a common factor of all weights by which each operation's result grows.

    It is that of the inputs, and one more with weights; those of factors add up, and a normalisation starts again at 0.
    Where inputs of different powers meet, as in a residual sum, there is none, nor is there after a softmax, an
    activation that is not homogeneous, such as GELU, or a module with several matrices such as attention; neither is
    there further up, until the next normalisation.

    Returns
    -------
    dict[int, int]
        By the position of the operation; without those that have none.
    """
    degrees: dict[int, int] = {}
    shapes: set[int] = set()
    for place, each in enumerate(operations):
        nodes = dict(zip(each.node.all_input_nodes, each.inputs, strict=True))
        if _name(each) in SHAPES or (nodes and shapes.issuperset(nodes.values())):
            shapes.add(place)
            continue
        degree = _degree(each, root, {node: degrees.get(k) for node, k in nodes.items() if k not in shapes})
        for step in each.tail:
            degree = _degree(step, root, dict.fromkeys(step.node.all_input_nodes, degree))
        if degree is not None:
            degrees[place] = degree
    return degrees


def _degree(step: Operation, root: nn.Module, of: Mapping[fx.Node, int | None]) -> int | None:
    """Return the power of one operation, for those of its inputs."""
    name = _name(step)
    module = None if step.kind is None else root.get_submodule(str(step.node.target))
    if isinstance(module, NORM_TYPES):
        return int(bool(step.entries))
    if name in INHOMOGENEOUS or None in of.values() or (module is not None and _matrices(step, module) > 1):
        return None
    known = {node: degree for node, degree in of.items() if degree is not None}
    if name in PRODUCTS | WEIGHTED | QUOTIENTS:
        first, *others = (known.get(node, 0) for node in _factors(step.node, 2 if name in WEIGHTED else None))
        return first + (-sum(others) if name in QUOTIENTS else sum(others)) + bool(step.entries)
    if name == "pow":
        power = step.node.args[1] if len(step.node.args) > 1 else None
        return power * sum(known.values()) if isinstance(power, int) else None
    if name == "square":
        return 2 * sum(known.values())
    degrees = set(known.values()) or {0}
    return degrees.pop() + bool(step.entries) if len(degrees) == 1 else None


def _name(step: Operation) -> str:
    """Return the name of an operation's function, method or module, in lower case and without underscores."""
    target: Any = step.node.target
    if step.kind is not None:
        target = step.kind.__name__
    elif target is getattr:
        target = step.node.args[1]
    elif step.node.op == "call_function":
        target = getattr(target, "__name__", "")
    return "" if step.node.op in ("get_attr", "placeholder") else str(target).lower().replace("_", "")


def _factors(node: fx.Node, count: int | None) -> list[Any]:
    """Return the arguments of a product, each as often as it is one: nodes, numbers, or nodes in a list."""
    found: list[Any] = []
    for each in [*node.args, *node.kwargs.values()][:count]:
        found.extend(each if isinstance(each, list | tuple) else [each])
    return found


def _matrices(step: Operation, module: nn.Module) -> int:
    """Return how many of the weights of a module are matrices; one that is computed from several counts as one."""
    if hasattr(module, "parametrizations"):
        return 1
    own = {entry.name for entry in step.entries}
    return sum(value.ndim > 1 for name, value in module.named_parameters() if name in own)
