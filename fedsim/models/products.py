"""Operations that multiply what they take, by their names."""

from collections.abc import Sequence
from typing import Any

from torch import fx

from fedsim.models.operation import Operation

PRODUCTS = {
    *("mul", "imul", "multiply", "matmul", "imatmul", "linalgmatmul", "mm", "bmm", "mv", "dot", "inner", "outer"),
    *("chainmatmul", "linalgmultidot", "einsum"),
}
_LAYERS = ("linear", *(f"{name}{d}d" for name in ("conv", "convtranspose") for d in (1, 2, 3)))
# Products of their first two or three arguments, which are called this.
_FACTORS = {
    **dict.fromkeys(_LAYERS, ("input", "weight")),
    "bilinear": ("input1", "input2", "weight"),
    "tensordot": ("a", "b"),
}
# Products of their second and third arguments, added to the first.
_ADDED = {
    "addmm": ("input", "mat1", "mat2"),
    "addmv": ("input", "mat", "vec"),
    "addr": ("input", "vec1", "vec2"),
    "addcmul": ("input", "tensor1", "tensor2"),
    **dict.fromkeys(("addbmm", "baddbmm"), ("input", "batch1", "batch2")),
}
# What gives the shape, and no values, of what it takes.
SHAPES = {"size", "dim", "numel", "shape", "ndim", "dtype", "device"}


def name_of(step: Operation) -> str:
    """Return the name of an operation's function, method or module, in lower case and without underscores."""
    target: Any = step.node.target
    if step.kind is not None:
        target = step.kind.__name__.removeprefix("Parametrized")
    elif target is getattr:
        target = step.node.args[1]
    elif step.node.op == "call_function":
        target = getattr(target, "__name__", "")
    return "" if step.node.op in ("get_attr", "placeholder") else str(target).lower().replace("_", "")


def is_product(step: Operation) -> bool:
    """Tell whether an operation multiplies what it takes; of modules, layers alone do."""
    names = _FACTORS.keys() if step.kind is not None else PRODUCTS | _FACTORS.keys() | _ADDED.keys()
    return name_of(step) in names


def factors_of(step: Operation) -> list[Any]:
    """Return the arguments of a product, each as often as it is one: nodes, numbers, or nodes in a list."""
    name, node = name_of(step), step.node
    chosen: list[Any] = [*node.args, *node.kwargs.values()]
    if name in _ADDED:
        chosen = _named(node, _ADDED[name])[1:]
    elif name in _FACTORS:
        chosen = _named(node, _FACTORS[name])
    found: list[Any] = []
    for each in chosen:
        found.extend(each if isinstance(each, list | tuple) else [each])
    return found


def addend_of(step: Operation) -> Any:
    """Return what an operation adds to its product, as the first matrix of ``torch.addmm``; None if it adds nothing."""
    names = _ADDED.get(name_of(step))
    return None if names is None else _named(step.node, names)[0]


def _named(node: fx.Node, names: Sequence[str]) -> list[Any]:
    """Return the arguments of these names, which are the first ones, as far as they are given."""
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return [given[name] for name in names if name in given]
