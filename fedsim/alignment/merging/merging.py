"""Several models merged into one, after aligning the units of each with those of the others.

Each member gets one permutation onto the merged model, so that those between members are consistent: the one from the
first to the second, composed with the one from the second to the third, is the one from the first to the third.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from fedsim.alignment.matching.weight_matching import counted, match_weights
from fedsim.alignment.merging.merged import Members, Merged, square
from fedsim.alignment.symmetries.permutations import Permutation, Spec, compose, identity, permute
from fedsim.models.averaging import weighted_mean
from fedsim.models.params import Params

Order = Literal["given", "nearest", "random"]
# Two models to join, and the permutation that brings the second's units to the places of the first's.
Pair = tuple[int, int, Permutation]


def merge_many(
    spec: Spec,
    members: Sequence[Params],
    *,
    weights: Sequence[float] | None = None,
    rng: np.random.Generator,
    start: Params | None = None,
    sweeps: int = 100,
) -> Merged:
    """Merge models, matching each with the mean of all others until nothing changes.

    Parameters
    ----------
    members
        Whole models, or the same part of each, as in `match_weights`.
    weights
        One positive number per member, its weight in every mean (default: equal).
    rng
        Stream for the order of members in each sweep, and for that of symmetries.
    start
        Model to match all members with first, and the merged model last, so that the merged units are in its places.
        Default: the first member, whose units then stay in place.
    sweeps
        Largest number of visits of each member.

    Raises
    ------
    ValueError
        If there is no member or no sweep, members have different entries, a weight is not positive, or as from
        `match_weights`.

    Notes
    -----
    A sweep costs as much as matching each member once: the sum of all is kept, and a member is subtracted from it. With
    rotations a member that gained less than a ten-thousandth, as in `match_weights`, counts as unchanged.

    References
    ----------
    Ainsworth et al. 2023, Git Re-Basin: merging models modulo permutation symmetries, arXiv 2209.04836, algorithm 3.
    """
    _check_sweeps(sweeps)
    merge = Members(spec, members, weights, start)
    permutations = merge.matched(rng)
    total = merge.mean(permutations)
    spreads = [merge.spread(total)]
    everyone = set(range(len(members)))
    # Members whose mean of the others has changed since they were last matched with it.
    unsettled = everyone
    for _ in range(sweeps):
        if not unsettled:
            break
        for member in rng.permutation(len(members)).tolist():
            if member in unsettled:
                share, start_at = merge.shares[member], permutations[member]
                others = _plus(total, -share, merge.counted(member, start_at))
                matching = match_weights(spec, others, members[member], rng=rng, start=start_at)
                unsettled = unsettled - {member}
                if len(matching.objective) > 1:
                    permutations[member] = matching.permutation
                    unsettled = everyone - {member} if matching.gains else unsettled
                    total = _plus(others, share, merge.counted(member, matching.permutation))
        spreads.append(merge.spread(total))
    return merge.merged(permutations, spreads, rng)


def merge_to_universe(
    spec: Spec,
    members: Sequence[Params],
    *,
    weights: Sequence[float] | None = None,
    rng: np.random.Generator,
    start: Params | None = None,
    sweeps: int = 100,
) -> Merged:
    """Merge models, matching all with their mean, the universe, until nothing changes.

    Parameters
    ----------
    members, weights, start
        As in `merge_many`.
    rng
        Stream for the order of symmetries.
    sweeps
        Largest number of universes.

    Raises
    ------
    ValueError
        As from `merge_many`.

    Notes
    -----
    The objective is that of `merge_many`, and apart from which one is first, the order of members has no effect.
    However, each member is part of the universe, and with few members this holds it in place: models that were trained
    independently hardly move from their matching with ``start``, and `merge_many` brings them closer together, as
    does `fedsim.alignment.merging.c2m3.merge_c2m3`, on relaxed permutations, with the same objective.

    References
    ----------
    Crisostomi et al. 2024, C2M3: cycle-consistent multi-model merging, arXiv 2405.17897.
    """
    _check_sweeps(sweeps)
    merge = Members(spec, members, weights, start)
    permutations = merge.matched(rng)
    universe = merge.mean(permutations)
    spreads = [merge.spread(universe)]
    for _ in range(sweeps):
        matchings = [
            match_weights(spec, universe, member, rng=rng, start=permutation)
            for member, permutation in zip(members, permutations, strict=True)
        ]
        if not any(matching.gains for matching in matchings):
            break
        permutations = [matching.permutation for matching in matchings]
        universe = merge.mean(permutations)
        spreads.append(merge.spread(universe))
    return merge.merged(permutations, spreads, rng)


def merge_hierarchically(
    spec: Spec,
    members: Sequence[Params],
    *,
    weights: Sequence[float] | None = None,
    rng: np.random.Generator,
    order: Order = "given",
    start: Params | None = None,
) -> Merged:
    """Merge models in pairs, then the pairs in pairs, and so on.

    Parameters
    ----------
    members, weights
        As in `merge_many`; each side of a pair has the total weight of its members.
    rng
        Stream for the order of symmetries, and for the pairs if they are random.
    order
        Pairs of each stage: neighbours, as ``given``; those ``nearest`` to each other after matching, nearest first; or
        ``random`` ones. A model without a partner moves to the next stage.
    start
        Model whose order of units the merged model gets (default: the first member).

    Raises
    ------
    ValueError
        As from `merge_many`, or if the order is unknown.

    Notes
    -----
    N members take N - 1 matchings; ``nearest`` matches all pairs of each stage, about ``2 * N ** 2 / 3``.

    References
    ----------
    Franke et al. 2025, arXiv 2510.09174.
    """
    if order not in PAIRINGS:
        raise ValueError(f"order = {order!r} must be one of {', '.join(PAIRINGS)}")
    merge = Members(spec, members, weights, start)
    nodes = [_Node(member, merge.shares[leaf], {leaf: identity(spec)}) for leaf, member in enumerate(members)]
    while len(nodes) > 1:
        pairs = PAIRINGS[order](spec, nodes, rng)
        paired = {side for first, second, _ in pairs for side in (first, second)}
        rest = [node for place, node in enumerate(nodes) if place not in paired]
        nodes = [nodes[first].joined(nodes[second], spec, permutation) for first, second, permutation in pairs] + rest
    permutations = [nodes[0].permutations[leaf] for leaf in range(len(members))]
    return merge.merged(permutations, [merge.spread(merge.mean(permutations))], rng)


@dataclass(frozen=True)
class _Node:
    """A model in a tree of merges, with its weight and the places of its leaves' units in it."""

    params: Params
    share: float
    permutations: dict[int, Permutation]

    def joined(self, other: "_Node", spec: Spec, permutation: Permutation) -> "_Node":
        """Return the mean of this node and another, permuted one."""
        both = [self.params, permute(other.params, spec, permutation)]
        leaves = {leaf: compose(each, permutation) for leaf, each in other.permutations.items()}
        mean = weighted_mean(both, [self.share, other.share])
        return _Node(mean, self.share + other.share, self.permutations | leaves)


def _given(spec: Spec, nodes: Sequence[_Node], rng: np.random.Generator) -> list[Pair]:
    return _neighbours(spec, nodes, range(len(nodes)), rng)


def _random(spec: Spec, nodes: Sequence[_Node], rng: np.random.Generator) -> list[Pair]:
    return _neighbours(spec, nodes, rng.permutation(len(nodes)).tolist(), rng)


def _neighbours(spec: Spec, nodes: Sequence[_Node], places: Sequence[int], rng: np.random.Generator) -> list[Pair]:
    return [
        (first, second, match_weights(spec, nodes[first].params, nodes[second].params, rng=rng).permutation)
        for first, second in zip(places[::2], places[1::2], strict=False)
    ]


def _nearest(spec: Spec, nodes: Sequence[_Node], rng: np.random.Generator) -> list[Pair]:
    squares = [square(counted(spec, node.params, node.params)) for node in nodes]
    found = []
    for first, second in combinations(range(len(nodes)), 2):
        matching = match_weights(spec, nodes[first].params, nodes[second].params, rng=rng)
        distance = squares[first] + squares[second] - 2 * matching.objective[-1]
        found.append((distance, first, second, matching.permutation))
    pairs, free = [], set(range(len(nodes)))
    for _, first, second, permutation in sorted(found, key=lambda each: each[:3]):
        if {first, second} <= free:
            free -= {first, second}
            pairs.append((first, second, permutation))
    return pairs


PAIRINGS = {"given": _given, "nearest": _nearest, "random": _random}


def _plus(params: Params, factor: float, others: Params) -> Params:
    return {key: value + factor * others[key] for key, value in params.items()}


def _check_sweeps(sweeps: int) -> None:
    if sweeps < 1:
        raise ValueError(f"sweeps = {sweeps} must be at least 1; use match_weights to match each member only once")
