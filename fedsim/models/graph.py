"""A model as a graph of operations, each with the parts of the model whose values it depends on."""

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fedsim.models.operation import Entry, NotTraceableError, Operation
from fedsim.models.params import first_keys
from fedsim.models.probing import count_flops, measured, probes_of

__all__ = ["NotTraceableError", "Operation", "count_flops", "probes_of", "trace"]

PLAIN = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


def trace(model: nn.Module, parts: Sequence[Sequence[str]], probes: Tensor) -> list[Operation]:
    """Return the operations of ``model``, in an order in which they can be run; the last one's result is the output.

    Parameters
    ----------
    model
        Model in eval mode. Modules that change their inputs in place are set not to.
    parts
        State-dict keys of each part of the model, with a tied tensor under its first key only.
    probes
        Five inputs, on which the graph is tested.

    Raises
    ------
    NotTraceableError
        If the graph cannot be made or checked, does not give the model's outputs, or mixes the examples of a batch.
    """
    with torch.inference_mode():
        expected = model(probes)
    if not isinstance(expected, Tensor):
        raise NotTraceableError("it does not map one input to one tensor")
    if not expected.isfinite().all():
        raise NotTraceableError("its outputs are not finite, so that its graph cannot be checked")
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # a model's code may raise anything on a proxy instead of a tensor
        raise NotTraceableError(f"it cannot be traced ({type(error).__name__})") from error
    operations = _operations(graph, model, parts)
    return _fused(measured(operations, model, probes, expected))


class _Tracer(fx.Tracer):
    """Descends to the modules that hold weights; a module that cannot be traced is one operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        owns = bool(m._parameters or m._buffers)
        return super().is_leaf_module(m, module_qualified_name) or (
            owns and not any(child.state_dict() for child in m.children())
        )

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # as above
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def _operations(graph: fx.Graph, model: nn.Module, parts: Sequence[Sequence[str]]) -> list[Operation]:
    """Return the operations that the output depends on."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder" and not node.args]
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    if len(placeholders) != 1 or not isinstance(output, fx.Node):
        raise NotTraceableError("it does not map one input to one tensor")
    needed, waiting = {placeholders[0], output}, [output]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node not in needed:
                needed.add(node)
                waiting.append(node)
    first, part_of = first_keys(model), {key: i for i, part in enumerate(parts) for key in part}
    # A module that has several paths is traced under one of them.
    nodes = [node for node in graph.nodes if node in needed]
    nodes.remove(output)
    nodes.append(output)
    position = {node: i for i, node in enumerate(nodes)}
    operations = []
    for node in nodes:
        _set_not_in_place_(node)
        keys: dict[str, str] = {}
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            own = [key for key in first if key == target or key.startswith(f"{target}.")]
            keys = {key[len(target) + 1 :]: first[key] for key in own if first[key] in part_of}
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        own_parts = sorted({part_of[key] for key in keys.values()})
        operations.append(
            Operation(
                node,
                tuple(position[each] for each in node.all_input_nodes),
                tuple(own_parts),
                tuple(Entry(name, key, own_parts.index(part_of[key])) for name, key in keys.items()),
                kind=None if module is None else type(module),
                affine=type(module) in AFFINE and len(own_parts) == 1 and not getattr(module, "max_norm", None),
            )
        )
    return operations


def _set_not_in_place_(node: fx.Node) -> None:
    if node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__"):
        raise NotTraceableError(f"it changes a tensor in place ({node.target})")
    if node.kwargs.get("inplace"):
        node.kwargs = node.kwargs | {"inplace": False}
    if node.op == "call_function":
        node.target = PLAIN.get(node.target, node.target)  # type: ignore[arg-type]


def _fused(operations: Sequence[Operation]) -> list[Operation]:
    """Append operations without weights that take only one operation's result to that operation."""
    users = Counter(k for each in operations for k in each.inputs)
    place: dict[int, int] = {}
    fused: list[Operation] = []
    for i, each in enumerate(operations):
        head = each.inputs[0] if len(each.inputs) == 1 else 0
        follows = head > 0 and users[head] == 1 and each.stackable and not each.parts
        if follows and operations[head].stackable:
            place[i] = place[head]
            before = fused[place[i]]
            fused[place[i]] = replace(before, tail=(*before.tail, each))
        else:
            place[i] = len(fused)
            fused.append(replace(each, inputs=tuple(place[k] for k in each.inputs)))
    return fused
