"""Operations of a graph that change a tensor in place, turned into others that return a new one."""

import inspect
import operator
from typing import Any

from torch import fx, nn

from fedsim.models.operation import NotTraceableError

# Operators that change their first argument, and those that do the same with a new one.
OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
OTHERS = frozenset({"setitem", "__setitem__", "ipow", "ifloordiv", "imod", "imatmul", "iand", "ior", "ixor"})
# Whatever returns a part of its first argument, or all of it in another shape, may share its memory.
VIEWS = {
    *("getitem", "getattr", "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("transpose", "swapaxes", "permute", "movedim", "t", "T", "mT", "expand", "expand_as", "narrow", "select"),
    *("split", "chunk", "unbind", "tensor_split", "unfold", "diagonal", "real", "imag"),
    *("view_as_real", "view_as_complex", "detach", "contiguous", "to", "float", "double", "dropout"),
}
VIEWING_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)


def set_not_in_place_(graph: fx.Graph, model: nn.Module) -> None:
    """Let operations and modules return a new tensor where they change one, and nothing uses that by another name.

    Raises
    ------
    NotTraceableError
        If something may use it, or an operation has no such form.
    """
    place = {node: i for i, node in enumerate(graph.nodes)}
    memory = _memory(graph, model)
    for node in [each for each in graph.nodes if _changes_in_place(each, model)]:
        changed = memory.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        shared = [each for each, whose in memory.items() if whose is changed]
        used_later = any(place[user] > place[node] for each in shared for user in each.users)
        replaceable = node.op == "call_module" or node.target in OPERATORS or _has_option(node)
        if changed is None or used_later or not replaceable or not node.users:
            raise NotTraceableError(f"it changes a tensor in place ({node.name})")
        if node.op == "call_module":
            model.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
        elif node.target in OPERATORS:
            node.target = OPERATORS[node.target]
        else:
            node.args, node.kwargs = (), _bound(node) | {"inplace": False}


def _memory(graph: fx.Graph, model: nn.Module) -> dict[fx.Node, fx.Node]:
    """Return for each operation the first one whose memory its result may share."""
    memory: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        first = next(iter(node.args), None)
        if node.op == "call_module":
            is_view = isinstance(model.get_submodule(str(node.target)), VIEWING_MODULES)
        else:
            is_view = _name(node) in VIEWS
        memory[node] = memory[first] if is_view and isinstance(first, fx.Node) else node
    return memory


def _changes_in_place(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return getattr(model.get_submodule(str(node.target)), "inplace", False) is True
    if node.op not in ("call_method", "call_function"):
        return False
    name = _name(node)
    is_named_so = name.endswith("_") and not name.endswith("__")
    is_told_so = _has_option(node) and bool(_bound(node).get("inplace"))
    has_out = node.kwargs.get("out") is not None
    return is_named_so or is_told_so or node.target in OPERATORS or name in OTHERS or has_out


def _has_option(node: fx.Node) -> bool:
    """Return whether a node is a function of Python that can be told whether to work in place."""
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return False
    return node.target.__module__ == "torch.nn.functional" and "inplace" in inspect.signature(node.target).parameters


def _bound(node: fx.Node) -> dict[str, Any]:
    return dict(inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments)  # type: ignore[arg-type]


def _name(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    # `operator.and_` and its like are named so because they must not be keywords.
    return name.removesuffix("_") if getattr(node.target, "__module__", "") == "_operator" else name
