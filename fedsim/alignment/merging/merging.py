"""Several models merged into one, the units of each in the places where they fit the others.

Each member gets one permutation onto the merged model, so that the ways between members agree: the one from the first
to the second and on to the third is the one from the first to the third.
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
# Two models to join, and what brings the second's units to the places of the first's.
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
    """Merge models, each matched anew with the mean of all others until nothing changes.

    Parameters
    ----------
    members
        Whole models, or the same part of each, as in `match_weights`.
    weights
        One positive number per member, its weight in every mean; all alike if not given.
    rng
        Draws the order of members, anew in each sweep, and that of symmetries.
    start
        All members are matched with it first, and the merged model last, so that its units are in the places that they
        have there. Without it the first member takes its part, and its units stay where they are.
    sweeps
        At most that many visits of each member.

    Raises
    ------
    ValueError
        If there is no member or no sweep, members have different entries, a weight is not positive, or as from
        `match_weights`.

    Notes
    -----
    A sweep costs as much as to match each member once: the sum of all is kept, and a member is taken out of it.

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
    # Members for which the mean of the others has changed since they were last matched with it.
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
                    permutations[member], unsettled = matching.permutation, everyone - {member}
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
    """Merge models, all matched anew with their mean, the universe, until nothing changes.

    Parameters
    ----------
    members, weights, start
        As in `merge_many`.
    rng
        Draws the order of symmetries.
    sweeps
        At most that many universes.

    Raises
    ------
    ValueError
        As from `merge_many`.

    Notes
    -----
    The objective is that of `merge_many`, and nothing depends on the order of members but which is the first. Each
    member is itself in the universe, though, and with few members this holds it where it is: models that were trained
    apart hardly move from where they are matched with ``start``, and `merge_many` brings them closer together. The
    authors of C2M3 reach the same objective with Frank-Wolfe steps on relaxed permutations of all members at once,
    which a universe of permuted models does without.

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
        if all(len(matching.objective) == 1 for matching in matchings):
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
        As in `merge_many`; in a pair each side has the weight of all members in it.
    rng
        Draws the order of symmetries, and the pairs if they are random.
    order
        Which models make pairs in each stage: neighbours, as ``given``; those ``nearest`` to each other once they are
        matched, the nearest first; or ``random`` ones. An odd one goes on to the next stage.
    start
        The merged model's units get the places that they have there; those of the first member's if not given.

    Raises
    ------
    ValueError
        As from `merge_many`, or if the order is unknown.

    Notes
    -----
    N members take N - 1 matchings; for ``nearest`` all pairs of each stage are matched, about ``2 * N ** 2 / 3``.

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
    """A model in a tree of merges, what it weighs, and where the units of its leaves are in it."""

    params: Params
    share: float
    permutations: dict[int, Permutation]

    def joined(self, other: "_Node", spec: Spec, permutation: Permutation) -> "_Node":
        """Return the mean of two nodes, the other one permuted."""
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
        raise ValueError(f"sweeps = {sweeps} must be at least 1; match each member by match_weights to match it once")
