"""Which expert of one mixture corresponds to which of another: by gates, by Gram matrices, or by all weights."""

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import scipy  # its parts are imported when they are used
import torch
from torch import Tensor

from fedsim.alignment.matching.weight_matching import counted, match_weights
from fedsim.alignment.symmetries.permutations import (
    Axis,
    Permutation,
    Segment,
    Spec,
    Symmetry,
    compose,
    identity,
    permute,
)
from fedsim.models.params import Params

ExpertCost = Literal["weights", "gate", "gram", "units"]


def match_experts(
    spec: Spec, reference: Params, params: Params, *, by: ExpertCost = "weights", start: Permutation | None = None
) -> Permutation:
    """Return the permutation of a model's experts, and of the hidden units in each, that brings it to a reference.

    The hidden units of shared experts, which every token passes, are matched by their weights whatever ``by`` is. So
    are those within each expert of a frozen gate: it is the same in all models, and experts that changed places would
    need its rows to do so too. All other units stay where ``start`` puts them, as where two mixtures were trained on
    one frozen backbone.

    Parameters
    ----------
    reference, params
        Whole models or parts of them. Entries that both have count.
    by
        How experts are assigned to those of the reference: by ``weights``, which gives the largest sum of products of
        all their weights over all orders of experts and of hidden units; by the distances of ``gate`` rows; by those of
        ``gram`` matrices of the experts' weights, which no order of hidden units changes; or not at all, so that only
        hidden ``units`` are matched. In all cases hidden units are then matched by their weights.
    start
        Permutation to start from; orders that it does not contain start with all units in place.

    Returns
    -------
    Permutation
        All orders of the architecture.

    Raises
    ------
    ValueError
        If the model has no experts to match, ``by`` is unknown or about entries that are not given, or as from
        `fedsim.alignment.matching.weight_matching.match_weights`.

    Notes
    -----
    With n experts of h hidden units, ``weights`` takes n ** 2 assignments of h units and one of n experts, all others n
    assignments of h units; s shared experts take one of s * h units. `match_weights` assigns experts by weights too, in
    turn with all other units.

    References
    ----------
    Tran et al. 2025, On linear mode connectivity of mixture-of-experts architectures, arXiv 2509.11348: ``gate`` and
    ``gram``.
    """
    if by not in get_args(ExpertCost):
        raise ValueError(f"by = {by!r} must be one of {', '.join(get_args(ExpertCost))}")
    experts = experts_of(spec)
    found = identity(spec) | (start or {})
    own, other = counted(spec, reference, params), counted(spec, permute(params, spec, start or {}), reference)
    for symmetry in (*experts, *_within_experts(spec)):
        if by == "weights" or symmetry not in experts:
            change = _matched(replace(spec, symmetries=(symmetry,)), own, other)
        else:
            blocks = torch.arange(symmetry.blocks)
            if by != "units":
                view = _gate if by == "gate" else _grams
                blocks = _nearest(view(spec, symmetry, own), view(spec, symmetry, other), by)
            change = {name: _of_blocks(blocks, width) for name, width in symmetry.widths.items()}
            change = compose(change, _units(spec, symmetry, own, permute(other, spec, change)))
        found = found | compose({name: found[name] for name in change}, change)
    return found


def experts_of(spec: Spec) -> list[Symmetry]:
    """Return the symmetries whose blocks are experts: none for those of frozen gates, which stay in place.

    Raises
    ------
    ValueError
        If there is none, nor units within experts that stay in place or are shared.
    """
    found = [each for each in spec.symmetries if _gates(spec, each)]
    if not found and not _within_experts(spec):
        raise ValueError("the model has no experts that can be matched; match by weights, or set num_experts")
    return found


def _within_experts(spec: Spec) -> list[Symmetry]:
    """Return the symmetries of units that only weights of experts follow: of shared ones, and of those in place."""
    paths = {key.rpartition("gate.")[0] for key in spec.gates}
    own = tuple(path + experts for path in paths for experts in ("experts.", "shared_experts."))
    return [
        each
        for each in spec.symmetries
        if all(key.startswith(own) for name in each.widths for key, _ in spec.uses(name))
    ]


def _gates(spec: Spec, symmetry: Symmetry) -> list[str]:
    """Return the keys of the gates whose rows are the blocks of a symmetry."""
    return [key for key in spec.axes if key in spec.gates and _order(spec, key) in symmetry.widths]


def _order(spec: Spec, key: str) -> str | None:
    """Return the order that the rows of a tensor follow, if it is one."""
    rows = spec.axes[key][0] if spec.axes[key] else ()
    return rows[0].order if len(rows) == 1 else None


def _of_blocks(blocks: Tensor, width: int) -> Tensor:
    """Return the order of units that moves whole blocks."""
    return (blocks[:, None] * width + torch.arange(width)).flatten()


def _matched(spec: Spec, reference: Params, params: Params) -> Permutation:
    """Return the best orders of a spec whose symmetries do not depend on each other."""
    return match_weights(spec, reference, params, rng=np.random.default_rng(0), start={}).permutation


def _nearest(reference: Sequence[Tensor], other: Sequence[Tensor], by: str) -> Tensor:
    """Return the order of experts with the least sum of distances; each tensor has a row for each expert."""
    if not reference:
        raise ValueError(
            f"by = {by!r}: the models have no such entries in common; give whole models, or by = 'weights'"
        )
    squares = [
        torch.cdist(a.flatten(1), b.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").square()
        for a, b in zip(reference, other, strict=True)
    ]
    cost = torch.stack(squares).sum(0).sqrt().cpu().numpy()
    return torch.from_numpy(scipy.optimize.linear_sum_assignment(cost)[1])


def _gate(spec: Spec, symmetry: Symmetry, params: Params) -> list[Tensor]:
    """Return the rows of the gates, whose mean over experts is 0."""
    rows = [params[key] for key in _gates(spec, symmetry) if key in params]
    return [each.flatten(1) if each.ndim > 1 else each[:, None] for each in rows]


def _grams(spec: Spec, symmetry: Symmetry, params: Params) -> list[Tensor]:
    """Return the Gram matrices ``[A, u]' [A, u]`` and ``B B' + v v'`` of each expert, each [experts, columns, columns].

    The entries of a module make one matrix for each expert, with a row for each hidden unit and one for what belongs to
    the expert as a whole.
    """
    units, whole = defaultdict[str, list[Tensor]](list), defaultdict[str, list[Tensor]](list)
    for key, value in params.items():
        order = _order(spec, key)
        if order is not None and order in symmetry.widths and key not in spec.gates:
            module, width = key.rpartition(".")[0], symmetry.widths[order]
            (units if width > 1 else whole)[module].append(value.reshape(symmetry.blocks, width, -1))
    matrices: list[Tensor] = []
    for module in {**units, **whole}:
        rows = [torch.cat(each[module], -1) for each in (units, whole) if module in each]
        matrices += [torch.cat(rows, 1)] if len({each.shape[-1] for each in rows}) == 1 else rows
    return [each.mT @ each for each in matrices]


def _units(spec: Spec, symmetry: Symmetry, reference: Params, params: Params) -> Permutation:
    """Return the best orders of the units within each block."""
    inside = {name: width for name, width in symmetry.widths.items() if width > 1}
    axes = {key: tuple(_cut(axis, inside, symmetry.blocks) for axis in each) for key, each in spec.axes.items()}
    symmetries = tuple(
        Symmetry(width, {_block(name, i): 1}) for name, width in inside.items() for i in range(symmetry.blocks)
    )
    found = _matched(replace(spec, symmetries=symmetries, axes=axes), reference, params)
    joined = {name: torch.arange(symmetry.blocks) for name in symmetry.widths}
    for name, width in inside.items():
        joined[name] = torch.cat([found[_block(name, i)] + i * width for i in range(symmetry.blocks)])
    return joined


def _cut(axis: Axis, orders: Container[str], blocks: int) -> Axis:
    """Return an axis on which each block of some orders has a separate order."""
    cut: list[Segment] = []
    for each in axis:
        if each.order is not None and each.order in orders:
            cut += [Segment(each.size // blocks, _block(each.order, i), each.repeat) for i in range(blocks)]
        else:
            cut.append(each)
    return tuple(cut)


def _block(order: str, block: int) -> str:
    return f"{order}, block {block}"
