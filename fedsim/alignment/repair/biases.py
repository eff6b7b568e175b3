"""Biases of merged models, set without data to the scale that activations have after several merged layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedsim.alignment.merging.shares import shares_of
from fedsim.alignment.repair.sites import SUMS, traced
from fedsim.models.graph import Operation
from fedsim.models.norms import NORM_TYPES
from fedsim.models.params import Params, fit, fit_all


def scale_biases(
    model: nn.Module,
    merged: Params,
    members: Sequence[Params],
    inputs: Tensor,
    *,
    weights: Sequence[float] | None = None,
) -> Params:
    """Return the merged model with biases ``sum_i p_i ** l * b_i`` in its linear layers and convolutions of depth l.

    The depth is the number of weighted sums on the longest way from the input, their own included; embeddings and
    modules that hold several weights count once. A normalisation does away with the scale of its input, so that its
    own weight is the first again. All other entries stay as they are.

    Where members share no hidden units, the average makes what a layer computes of a member smaller by ``p_i`` at each
    layer. With these biases the merged model of depth L then computes ``sum_i p_i ** L * f_i``, if it is a chain of
    weighted sums and of functions with ``f(c x) = c f(x)`` for positive c, such as ReLU and pooling.

    Parameters
    ----------
    model
        Gives the architecture; it is not changed.
    merged
        All entries of the members' weighted average.
    members
        All entries of what was merged, their units in the order of the merged model's.
    inputs
        One or more, as the model takes them, on which its graph is tried; the result does not depend on them.
    weights
        One positive number per member; by default all alike.

    Raises
    ------
    ValueError
        If there are no inputs, the model is not a graph of operations on single examples, an entry does not fit it, or
        the weights do not fit the members.

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
    """Return for each operation how often its result has been multiplied by weights since it was last normalised."""
    depths: list[int] = []
    for each in operations:
        depth = max((depths[k] for k in each.inputs), default=0)
        for step in (each, *each.tail):
            if step.kind is not None and isinstance(root.get_submodule(str(step.node.target)), NORM_TYPES):
                depth = 0
            depth += bool(step.entries)
        depths.append(depth)
    return depths
