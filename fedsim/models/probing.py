"""A traced model checked and measured on a few inputs: correctness, sizes and work of its operations."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models.operation import NotTraceableError, Operation
from fedsim.models.params import Params

# The traced and the original model must agree on these, and so must a batch and its two pieces.
PROBES = (2, 3)


def probes_of(inputs: Tensor) -> Tensor:
    """Return the number of inputs that a trace takes, with repetitions if there are fewer.

    Raises
    ------
    ValueError
        If there are no inputs.
    """
    if not len(inputs):
        raise ValueError("there are no inputs; give at least one")
    return inputs[torch.arange(sum(PROBES), device=inputs.device) % len(inputs)]


def measured(operations: Sequence[Operation], model: nn.Module, probes: Tensor, expected: Tensor) -> list[Operation]:
    """Return the operations with the properties that the probes show."""
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


def count_flops(operations: Sequence[Operation], model: nn.Module, inputs: Tensor) -> list[float]:
    """Return the floating-point operations per example of each operation: two for each use of a weight in a product.

    Operations without weights and the product of queries and keys are not counted.
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


def _run_all(operations: Sequence[Operation], root: nn.Module, weights: Params, inputs: Tensor) -> list[Any]:
    """Return each operation's result."""
    results: list[Any] = [inputs]
    with torch.no_grad():
        for each in operations[1:]:
            own = {entry.name: weights[entry.key] for entry in each.entries}
            results.append(each.run_with_tail(root, [results[k] for k in each.inputs], own))
    return results


def _check_outputs(few: Any, more: Any, every: Any, expected: Tensor) -> None:
    if not isinstance(every, Tensor) or every.shape != expected.shape or len(expected) != sum(PROBES):
        raise NotTraceableError("its graph does not give a row for each example")
    # Rounding is relative to the largest of the summands.
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
