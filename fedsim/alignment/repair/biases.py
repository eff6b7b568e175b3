"""Biases of merged models, scaled without data to the activations after several merged layers."""

from collections.abc import Container, Sequence

import torch
from torch import Tensor, nn

from fedsim.alignment.merging.shares import shares_of
from fedsim.alignment.repair.sites import SUMS, traced
from fedsim.models.graph import Operation
from fedsim.models.norms import NORM_TYPES
from fedsim.models.operation import weights_only
from fedsim.models.params import Params, fit, fit_all
from fedsim.models.products import SHAPES, addend_of, factors_of, is_product, name_of


def scale_biases(
    model: nn.Module,
    merged: Params,
    members: Sequence[Params],
    inputs: Tensor,
    *,
    weights: Sequence[float] | None = None,
) -> Params:
    """Return the merged model with biases ``sum_i p_i ** l * b_i`` in its linear layers and convolutions of depth l.

    The depth is the number of weighted sums and products with weights on the longest path from the input, including
    the layer's own; embeddings and modules that hold several weights count once. A normalisation removes the scale of
    its input, so that counting restarts at its own weight. Buffers are no weights. All other entries do not change.

    If members share no hidden units, averaging scales a member's activations by ``p_i`` at each layer. With these
    biases the merged model of depth L then computes ``sum_i p_i ** L * f_i``, if it is a chain of weighted sums and of
    functions with ``f(c x) = c f(x)`` for positive c, such as ReLU and pooling.

    Parameters
    ----------
    model
        Model with the architecture; it is not changed.
    merged
        All entries of the members' weighted average.
    members
        All entries of the merged models, with their units in the order of the merged model's.
    inputs
        One or more inputs, as the model takes them, for testing its graph; the result does not depend on them.
    weights
        One positive number per member (default: equal).

    Raises
    ------
    ValueError
        If there are no inputs, the model is not a graph of operations on single examples, an entry does not match it,
        or the weights do not match the members.

    References
    ----------
    Qu and Horváth 2024, Rethink model re-basin and the linear mode connectivity, arXiv 2402.05966.
    """
    shares = shares_of(members, weights)
    fitted, params = fit_all(model, members, 1), fit(model, merged, "the merged model")
    operations, root = traced(model, params, inputs)
    depths = depths_of(operations, root)
    uses = [entry.key for each in operations for entry in each.entries]
    for depth, each in zip(depths, operations, strict=True):
        for entry in each.entries:
            if each.kind in SUMS and entry.name == "bias" and uses.count(entry.key) == 1:
                terms = (
                    share**depth * member[entry.key].double() for share, member in zip(shares, fitted, strict=True)
                )
                params[entry.key] = torch.stack(list(terms)).sum(0).to(params[entry.key])
    return params


def depths_of(operations: Sequence[Operation], root: nn.Module) -> list[int]:
    """Return how often the result of each operation, before its tail, was multiplied by weights since the last norm."""
    depths: list[int] = []
    finished: list[int] = []  # after the tail, which may normalise the result
    without_input: set[int] = set()  # what does not depend on the input
    for place, each in enumerate(weights_only(operations, root)):
        is_shape = name_of(each) in SHAPES
        if each.node.op != "placeholder" and (is_shape or without_input.issuperset(each.inputs)):
            without_input.add(place)
        restarts = is_shape or _is_norm(each, root)
        depth = 0 if restarts else max((finished[k] for k in each.inputs), default=0)
        if is_product(each):
            depth = _of_product(each, finished, without_input)
        depths.append(depth + bool(each.entries))
        finished.append(0 if any(_is_norm(step, root) for step in each.tail) else depths[-1])
    return depths


def _of_product(step: Operation, depths: Sequence[int], without_input: Container[int]) -> int:
    """Return the depth of a product: that of its deepest factor from the input, and those of weights and of buffers.

    If more from the input is added, and is deeper, it is the depth of that.
    """
    nodes = dict(zip(step.node.all_input_nodes, step.inputs, strict=True))
    factors = [nodes[each] for each in factors_of(step) if each in nodes]
    weights = sum(depths[k] for k in factors if k in without_input)
    product = weights + max((depths[k] for k in factors if k not in without_input), default=0)
    added = nodes.get(addend_of(step))
    return product if added is None or added in without_input else max(product, depths[added])


def _is_norm(step: Operation, root: nn.Module) -> bool:
    return step.kind is not None and isinstance(root.get_submodule(str(step.node.target)), NORM_TYPES)
