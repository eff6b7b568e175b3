"""A model as a graph of operations, each with the parts of the model whose values it depends on."""

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.functional import embedding, linear

from fedsim.models.params import Params, first_keys

# On these the traced and the original model must agree, and a batch with its two pieces.
PROBES = (2, 3)
PLAIN = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


def probes_of(inputs: Tensor) -> Tensor:
    """Return as many inputs as a trace takes, some several times where there are fewer.

    Raises
    ------
    ValueError
        If there are none.
    """
    if not len(inputs):
        raise ValueError("there are no inputs; give at least one")
    return inputs[torch.arange(sum(PROBES), device=inputs.device) % len(inputs)]


class NotTraceableError(Exception):
    """A model that cannot be written as a graph of operations that take examples one by one."""


class Entry(NamedTuple):
    """One of the weights of an operation."""

    name: str
    key: str
    part: int


@dataclass(frozen=True)
class Operation:
    """One operation of a model; its own weights are given anew each time.

    Parameters
    ----------
    inputs
        Positions of the operations whose results it takes; 0 is the model's input.
    parts
        Positions of the model's parts that hold its weights.
    entries
        Its own weights: the name in the module, the state-dict key, and which of ``parts`` holds it.
    affine
        Whether its result is an affine function of its weights, so that a mix of weights gives a mix of results.
    stackable
        Whether the batches of several models may go through it as one.
    per_example
        Whether its result has one row per example.
    size
        Bytes of the result per example, before the tail.
    kind
        Type of its module, if it is one.
    tail
        What is done to the result before anything else takes it: operations of one input without weights.
    """

    node: fx.Node
    inputs: tuple[int, ...]
    parts: tuple[int, ...]
    entries: tuple[Entry, ...]
    kind: type[nn.Module] | None = None
    affine: bool = False
    stackable: bool = False
    per_example: bool = False
    size: float = 0.0
    tail: tuple["Operation", ...] = ()

    def run(self, root: nn.Module, arguments: Sequence[Any], weights: Params) -> Any:
        """Return the result for the results of its inputs.

        Parameters
        ----------
        root
            A copy of the model that no other thread uses.
        weights
            Its own entries, by the name that they have in its module.
        """
        values = dict(zip(self.node.all_input_nodes, arguments, strict=True))
        args = fx.map_arg(self.node.args, values.__getitem__)
        kwargs: Any = fx.map_arg(self.node.kwargs, values.__getitem__)
        target: Any = self.node.target
        if self.node.op == "call_module":
            return _call(root.get_submodule(target), args, kwargs, weights)
        if self.node.op == "get_attr":
            return weights[""] if weights else operator.attrgetter(target)(root)
        if self.node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def run_with_tail(self, root: nn.Module, arguments: Sequence[Any], weights: Params) -> Any:
        """Return the result as others take it."""
        return self.finish(root, self.run(root, arguments, weights))

    def finish(self, root: nn.Module, value: Any) -> Any:
        """Return what the tail makes of the result."""
        for each in self.tail:
            value = each.run(root, [value], {})
        return value

    @property
    def finished_size(self) -> float:
        """Bytes of the result per example as others take it."""
        return self.tail[-1].size if self.tail else self.size


def _call(module: nn.Module, args: Any, kwargs: Any, weights: Params) -> Any:
    # Calling torch's function costs less than putting the weights into the module.
    if type(module) is nn.Linear:
        return linear(args[0], weights["weight"], weights.get("bias"))
    if type(module) is nn.Conv2d:
        return module._conv_forward(args[0], weights["weight"], weights.get("bias"))
    if type(module) is nn.Embedding and module.max_norm is None:
        return embedding(args[0], weights["weight"])
    return functional_call(module, weights, args, kwargs)


def trace(model: nn.Module, parts: Sequence[Sequence[str]], probes: Tensor) -> list[Operation]:
    """Return the operations of ``model``, in an order in which they can be run; the last one's result is the output.

    Parameters
    ----------
    model
        In eval mode. Modules that change their inputs in place are set not to.
    parts
        What the model is made of: the state-dict keys of each part, a tied tensor under its first one only.
    probes
        Five inputs, on which the graph is tried.

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
    except Exception as error:  # whatever a model's own code raises when it is given what is not a tensor
        raise NotTraceableError(f"it cannot be traced ({type(error).__name__})") from error
    operations = _operations(graph, model, parts)
    return _fused(_measured(operations, model, probes, expected))


class _Tracer(fx.Tracer):
    """Goes into modules down to those that hold weights; what cannot be traced is one operation."""

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
    """Return what the output depends on."""
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


def _measured(operations: Sequence[Operation], model: nn.Module, probes: Tensor, expected: Tensor) -> list[Operation]:
    """Return the operations with what the probes say about them."""
    weights = dict(model.state_dict())
    few, more, every = (_run_all(operations, model, weights, piece) for piece in (*probes.split(PROBES), probes))
    _check_outputs(few[-1], more[-1], every[-1], expected)
    rows = [_rows(a, PROBES[0]) and _rows(b, PROBES[1]) for a, b in zip(few, more, strict=True)]
    fixed = [not per_example and _same(a, b) for a, b, per_example in zip(few, more, rows, strict=True)]
    return [
        replace(
            each,
            affine=each.affine and rows[i] and all(rows[k] for k in each.inputs),
            stackable=rows[i] and any(rows[k] for k in each.inputs) and all(rows[k] or fixed[k] for k in each.inputs),
            per_example=rows[i],
            size=_size(few[i]) / PROBES[0],
        )
        for i, each in enumerate(operations)
    ]


def _fused(operations: Sequence[Operation]) -> list[Operation]:
    """Join what is only done to one operation's result, without weights, to that operation."""
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


def _run_all(operations: Sequence[Operation], root: nn.Module, weights: Params, inputs: Tensor) -> list[Any]:
    """Return each operation's result."""
    results: list[Any] = [inputs]
    with torch.no_grad():
        for each in operations[1:]:
            own = {entry.name: weights[entry.key] for entry in each.entries}
            results.append(each.run_with_tail(root, [results[k] for k in each.inputs], own))
    return results


def count_flops(operations: Sequence[Operation], model: nn.Module, inputs: Tensor) -> list[float]:
    """Return the floating-point operations per example of each operation: two for each use of a weight in a product.

    What has no weights is not counted, neither is the product of queries and keys.
    """
    results = _run_all(operations, model, dict(model.state_dict()), inputs)
    flops = []
    for each in operations:
        module = model.get_submodule(str(each.node.target)) if each.node.op == "call_module" else None
        weights = [] if module is None else [weight for weight in module.parameters() if weight.ndim > 1]
        if not weights or isinstance(module, nn.Embedding):
            flops.append(0.0)
            continue
        if each.affine:
            uses = each.size * len(inputs) / weights[0].element_size() / len(weights[0])
        else:  # an LSTM or attention: once at each position
            first = next(results[k] for k in each.inputs if isinstance(results[k], Tensor))
            uses = first.numel() / first.shape[-1]
        flops.append(2.0 * uses * sum(weight.numel() for weight in weights) / len(inputs))
    return flops


def _check_outputs(few: Any, more: Any, every: Any, expected: Tensor) -> None:
    if not isinstance(every, Tensor) or every.shape != expected.shape or len(expected) != sum(PROBES):
        raise NotTraceableError("its graph does not give a row for each example")
    # Rounding is relative to the largest of the numbers that are added up.
    tolerance = 1e-4 * float(expected.abs().max())
    if not torch.allclose(every, expected, rtol=0, atol=tolerance):
        raise NotTraceableError("its graph gives other outputs")
    if not torch.allclose(torch.cat([few, more]), expected, rtol=0, atol=tolerance):
        raise NotTraceableError("the outputs for an example depend on the others of its batch")


def _rows(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and not isinstance(a, tuple | list) and bool(a == b)


def _size(value: Any) -> float:
    if isinstance(value, Tensor):
        return float(value.numel() * value.element_size())
    return sum(map(_size, value)) if isinstance(value, Iterable) and not isinstance(value, str) else 0.0
