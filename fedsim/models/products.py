"""Operations that multiply what they take, by their names."""

from typing import Any

from torch import fx

from fedsim.models.operation import Operation

PRODUCTS = {"mul", "imul", "multiply", "matmul", "imatmul", "mm", "bmm", "einsum", "bilinear"}
# Products of their first two arguments.
WEIGHTED = {"linear", *(f"conv{d}d" for d in (1, 2, 3)), *(f"convtranspose{d}d" for d in (1, 2, 3))}


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


def factors_of(node: fx.Node, count: int | None) -> list[Any]:
    """Return the arguments of a product, each as often as it is one: nodes, numbers, or nodes in a list."""
    found: list[Any] = []
    for each in [*node.args, *node.kwargs.values()][:count]:
        found.extend(each if isinstance(each, list | tuple) else [each])
    return found
