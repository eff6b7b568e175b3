"""A traced model checked and measured on a few inputs: correctness, sizes and work of its operations."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models.operation import NotTraceableError, Operation
from fedsim.models.params import Params, load_state_
from fedsim.models.purity import is_close
from fedsim.models.tensors import tensors_in

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
    places = torch.arange(sum(PROBES), device=inputs.device)
    probes, again = inputs[places % len(inputs)], (places // len(inputs)).tolist()
    # Among equal ones, a model that mixes the examples of a batch would not be noticed.
    return torch.stack([_varied(probe, times) for probe, times in zip(probes, again, strict=True)])


def _varied(probe: Tensor, times: int) -> Tensor:
    if probe.is_floating_point():
        return probe * 0.9**times + 0.01 * times
    return probe.roll(times, -1) if probe.ndim else probe


def measured(
    operations: Sequence[Operation],
    model: nn.Module,
    original: nn.Module,
    probes: Tensor,
    expected: Tensor,
    moving: Collection[str],
) -> list[Operation]:
    """Return the operations with the properties that the probes show.

    Parameters
    ----------
    model
        Model that the operations run in.
    original
        A copy to compare with, which is changed.
    expected
        Its outputs for the probes.
    moving
        State-dict keys of the weights that the operations take, and do not find in the model.

    Raises
    ------
    NotTraceableError
        If the operations do not give the outputs of the model, with its weights and with others, or compute in numbers
        of half precision.
    """
    weights = dict(model.state_dict())
    few, more = (results_of(operations, model, weights, piece) for piece in probes.split(PROBES))
    for found, outputs in zip((few, more), expected.split(PROBES), strict=True):
        if not is_close(found[-1], outputs):
            raise NotTraceableError("its graph gives other outputs")
    if any(each.is_floating_point() and each.itemsize < 4 for each in tensors_in([few, weights])):
        # Mixed results are not the results of mixed weights to within 1e-5, nor are they the same in another batch.
        raise NotTraceableError("it computes in numbers of half precision")
    others = weights | {key: _other(weights[key], 0.9 + 0.03 * (k % 7)) for k, key in enumerate(sorted(moving))}
    load_state_(original, others)
    with torch.no_grad():
        # In another batch: a head of zeros hides what depends on the other examples.
        if not is_close(results_of(operations, model, others, probes[:2])[-1], original(probes)[:2]):
            raise NotTraceableError("its graph gives other outputs with other weights")
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


def _other(value: Tensor, factor: float) -> Tensor:
    """Return other weights, all of which differ; what is positive remains so."""
    if not value.numel() or not (value.is_floating_point() or value.is_complex()):
        return value
    return value * factor + (0.02 * value.abs().mean() + 1e-3)


def count_flops(operations: Sequence[Operation], model: nn.Module, inputs: Tensor) -> list[float]:
    """Return the floating-point operations per example of each operation: two for each use of a weight in a product.

    Operations without weights and the product of queries and keys are not counted.
    """
    results = results_of(operations, model, dict(model.state_dict()), inputs)
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
            first = next((results[k] for k in each.inputs if isinstance(results[k], Tensor)), inputs)
            uses = first.numel() / max(1, *first.shape[-1:])
        flops.append(2.0 * uses * sum(weight.numel() for weight in weights) / len(inputs))
    return flops


def results_of(operations: Sequence[Operation], root: nn.Module, weights: Params, inputs: Tensor) -> list[Any]:
    """Return each operation's result for some inputs, in a copy of the model.

    Raises
    ------
    NotTraceableError
        If an operation changes what it takes.
    """
    results: list[Any] = [inputs]
    with torch.no_grad():
        for each in operations[1:]:
            own = {entry.name: weights[entry.key] for entry in each.entries}
            taken = [value for k in each.inputs for value in tensors_in(results[k])] + list(own.values())
            versions = [value._version for value in taken]
            results.append(each.run_with_tail(root, [results[k] for k in each.inputs], own))
            if versions != [value._version for value in taken]:
                raise NotTraceableError(f"{each.node.name} changes in place what it takes")
    return results


def _rows(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and isinstance(a, bool | int | float | str | torch.Size | torch.dtype) and bool(a == b)


def _size(value: Any) -> float:
    if isinstance(value, Tensor):
        return float(value.numel() * value.element_size())
    return sum(map(_size, value)) if isinstance(value, Iterable) and not isinstance(value, str) else 0.0
