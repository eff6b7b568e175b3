"""A model as a graph of operations, each with the parts of the model whose values it depends on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, fx, nn

from fedsim.errors import first_line
from fedsim.models.copies import copy_of
from fedsim.models.in_place import set_not_in_place_
from fedsim.models.operation import Entry, NotTraceableError, Operation, is_plain
from fedsim.models.params import first_keys, is_finite
from fedsim.models.probing import count_flops, measured, probes_of
from fedsim.models.purity import outputs_of
from fedsim.models.tracer import Tracer

__all__ = ["NotTraceableError", "Operation", "count_flops", "probes_of", "trace"]

AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


def trace(model: nn.Module, parts: Sequence[Sequence[str]], probes: Tensor) -> list[Operation]:
    """Return the operations of ``model``, in an order in which they can be run; the last one's result is the output.

    Parameters
    ----------
    model
        Model in eval mode. Modules that change their inputs in place are set not to, and constants of its code are kept
        in it.
    parts
        State-dict keys of each part of the model, with a tied tensor under its first key only.
    probes
        Five inputs, on which the graph is tested.

    Raises
    ------
    NotTraceableError
        If the graph cannot be made or checked, does not give the model's outputs with these weights and others, or
        mixes the examples of a batch.
    """
    try:
        original, other = copy_of(model), copy_of(model, shares_parameters=True)
        expected = outputs_of(original, other, probes)
        graph = _graph_of(other, model)
        operations = _operations(graph, model, parts)
        moving = {key for part in parts for key in part}
        if infinite := [
            key for key, value in model.state_dict().items() if key in moving and not is_finite({"": value})
        ]:
            raise NotTraceableError(f"{infinite[0]!r} is not finite, as a mask is")  # which `torch.lerp` makes NaN
        return _fused(measured(operations, model, original, probes, expected, moving))
    except NotTraceableError:
        raise
    except Exception as error:  # a model's code may raise anything, on proxies instead of tensors above all
        raise NotTraceableError(f"it cannot be traced ({first_line(error)})") from error


class _Tracer(Tracer):
    """Descends to the modules that hold weights."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        owns = bool(m._parameters or m._buffers)
        return super().is_leaf_module(m, module_qualified_name) or (
            owns and not any(child.state_dict() for child in m.children())
        )


def _graph_of(traced: nn.Module, model: nn.Module) -> fx.Graph:
    """Return the graph of a copy, whose code may keep proxies in it; the model gets the constants of the graph."""
    graph = _Tracer().trace(traced)
    for node in graph.nodes:
        if node.op == "get_attr" and "." not in node.target and not hasattr(model, node.target):
            setattr(model, node.target, getattr(traced, node.target))
    set_not_in_place_(graph, model)
    return graph


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
        own, keys = [], {}
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
                affine=len(own_parts) == 1 and module is not None and _is_affine(module),
                frozen=bool(own) and not keys,
            )
        )
    return operations


def _is_affine(module: nn.Module) -> bool:
    return type(module) in AFFINE and is_plain(module) and not getattr(module, "max_norm", None)


def _fused(operations: Sequence[Operation]) -> list[Operation]:
    """Append operations without weights that take only one operation's result to that operation."""
    users = Counter(k for each in operations for k in each.inputs)
    place: dict[int, int] = {}
    fused: list[Operation] = []
    for i, each in enumerate(operations):
        head = each.inputs[0] if len(each.inputs) == 1 else 0
        follows = head > 0 and users[head] == 1 and each.stackable and not each.parts and not each.frozen
        if follows and operations[head].stackable:
            place[i] = place[head]
            before = fused[place[i]]
            fused[place[i]] = replace(before, tail=(*before.tail, each))
        else:
            place[i] = len(fused)
            fused.append(replace(each, inputs=tuple(place[k] for k in each.inputs)))
    return fused
