"""Sites: where in a traced model features are taken."""

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import linear

from fedsim.models.graph import Operation

# What joins branches of a model.
JOINS = (operator.add, torch.add, torch.cat, torch.concat)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Site:
    """A place in a model whose values are features.

    Parameters
    ----------
    name
        Name of the layer, or of the module in whose code branches are joined.
    place
        Position of its operation, or of its module, among those of the model.
    module
        The linear or convolutional module, if it is one whose input depends on weights.
    weight, bias
        State-dict keys of that module; empty if it has none.
    bends
        Whether what follows the operation, without weights, is not affine.
    axis
        Dimension of the units: the last after linear layers, the first after examples elsewhere.
    """

    name: str
    place: int
    module: nn.Module | None = None
    weight: str = ""
    bias: str = ""
    bends: bool = False
    axis: int = 1

    def of_linear(self, module: nn.Module, keys: Mapping[str, str]) -> Self:
        """Return the site with its linear module, and the state-dict keys of its entries by their names in it."""
        return replace(self, module=module, weight=keys["weight"], bias=keys.get("bias", ""))


def weighted(module: Any, weight: Tensor, argument: Tensor) -> Tensor:
    """Return what a linear or convolutional module would give with another weight, and without a bias."""
    if isinstance(module, nn.Linear):
        return linear(argument, weight)
    result: Tensor = module._conv_forward(argument, weight, None)
    return result


def sites_of(operations: Sequence[Operation], root: nn.Module, results: Sequence[Tensor]) -> list[Site]:
    """Return the sites of a traced model in forward order; the last is the output.

    Parameters
    ----------
    results
        What each operation gives for some inputs, before its tail.
    """
    fixed = fixed_operations(operations)
    sites = []
    for i, each in enumerate(operations):
        name = _name(operations, i, fixed)
        if i == len(operations) - 1 and name is None:
            name = each.node.name
        if i == 0 or name is None or not results[i].is_floating_point():
            continue
        site = Site(name, i, bends=_bends(each, root, results[i]), axis=axis_of(each.kind))
        keys = {entry.name: entry.key for entry in each.entries}
        # A layer whose weight is frozen gives features, but there is no weight to compare.
        if each.kind in LINEAR and each.affine and "weight" in keys and not all(fixed[k] for k in each.inputs):
            site = site.of_linear(root.get_submodule(str(each.node.target)), keys)
        sites.append(site)
    return with_unique_names(sites)


def axis_of(kind: type[nn.Module] | None) -> int:
    """Return the dimension of the units that a module of this kind gives."""
    return -1 if kind in (nn.Linear, nn.LayerNorm, nn.Embedding) else 1


def fixed_operations(operations: Sequence[Operation]) -> list[bool]:
    """Return for each operation whether its result is independent of the weights."""
    fixed: list[bool] = []
    for each in operations:
        fixed.append(not each.parts and all(fixed[k] for k in each.inputs))
    return fixed


def with_unique_names(sites: Sequence[Site]) -> list[Site]:
    """Return sites of which the last of several with one name keeps it; those before are ``name:1``, ``name:2``."""
    of, seen = Counter(site.name for site in sites), Counter[str]()
    unique = []
    for site in sites:
        seen[site.name] += 1
        is_last = seen[site.name] == of[site.name]
        unique.append(site if is_last else replace(site, name=f"{site.name}:{seen[site.name]}"))
    return unique


def _name(operations: Sequence[Operation], i: int, fixed: Sequence[bool]) -> str | None:
    """Return the name of an operation whose results are features."""
    operation = operations[i]
    node = operation.node
    if not operation.per_example:
        return None
    if operation.parts:
        return str(node.target)
    if node.target is operator.getitem and node.args[1] == 0:
        # An LSTM, or attention, which gives more than one tensor.
        source = operations[operation.inputs[0]]
        return str(source.node.target) if source.parts and not source.per_example else None
    branches = {k for k in operation.inputs if operations[k].per_example and not fixed[k]}
    if len(branches) > 1 and (node.target in JOINS or (node.op == "call_method" and node.target == "add")):
        return _module_of(node)
    return None


def _module_of(node: fx.Node) -> str:
    """Return the innermost module in whose code a node stands; in that of the model itself, the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack))) if stack else node.name


def _bends(operation: Operation, root: nn.Module, like: Tensor) -> bool:
    """Return whether the tail is not affine, from what it does to the midpoint of two points."""
    if not operation.tail:
        return False
    generator = torch.Generator().manual_seed(0)
    points = [
        10 * torch.randn(like[:1].shape, generator=generator, dtype=torch.float64).to(like.device) for _ in range(2)
    ]
    with torch.inference_mode():
        first, second = (operation.finish(root, point) for point in points)
        middle = operation.finish(root, (points[0] + points[1]) / 2)
        return not torch.allclose(middle, (first + second) / 2, rtol=0, atol=1e-9 * float(first.abs().max()))
