"""C2M3: several models brought into one universe at once, by Frank-Wolfe steps on relaxed permutations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedsim.alignment.matching.relaxations import closest, matrices_of, softened
from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.merging.frank_wolfe import RelaxedModel, objective_of, step_of, targets_of
from fedsim.alignment.merging.merged import Members, Merged, square
from fedsim.alignment.symmetries.permutations import Permutation, Spec, identity, permute
from fedsim.models.params import Params

# Steps in a row that gain less than the tolerance, after which the search ends, as in the released code.
PATIENCE = 5


@dataclass(frozen=True)
class C2M3(Merged):
    """A merged model, and how well its members' units fit each other.

    Parameters
    ----------
    objective
        Sum over all pairs of members of the products of their parameters, while units are mixed: at the start and after
        each step; it never decreases.
    final
        The same of the permuted members. The last assignment may lower it.
    """

    objective: list[float]
    final: float


def merge_c2m3(
    spec: Spec,
    members: Sequence[Params],
    *,
    weights: Sequence[float] | None = None,
    rng: np.random.Generator,
    start: Params | None = None,
    steps: int = 200,
    softness: float = 0.5,
    tolerance: float = 1e-6,
) -> C2M3:
    """Merge models, matching all with each other at once: cycle-consistent multi-model merging.

    Parameters
    ----------
    members
        Whole models, or the same part of each, as in `match_weights`.
    weights
        One positive number per member (default: equal). They count in the mean, and not in the matching.
    rng
        Stream for the first matching.
    start
        Model that all members are matched with first, and the merged model last, so that the merged units are in its
        places. By default members are first matched with the one of the largest norm, and the first member's units
        stay in place at last.
    steps
        Largest number of steps, each of which assigns all units of each member once.
    softness
        Share, from 0 to 1, of the way from the first matching to the centre, where all permutations count alike; there
        the steps begin.
    tolerance
        Gain, relative to the objective, that does not count as one: after five such steps in a row the search ends.

    Raises
    ------
    ValueError
        If there is no member or no step, members have different entries, a weight is not positive, ``softness`` is not
        from 0 to 1, the spec has rotations, or as from `match_weights`.

    Notes
    -----
    The relaxed permutations of all members move at once, by the step with the largest objective, towards those in which
    it rises fastest. Between two members it is a polynomial of degree 4 in the step's length, of which we take the
    maximum; the released code searches for it. Members see each other as one sum per layer, so that a step's cost grows
    with their number and not with that of pairs. The code begins at the identity, from which two copies of a model only
    change places, or at noise; a softened matching finds the copies, and better optima of independent models. Apart
    from the places of its units, the order of members has no effect.

    The search keeps up to three further copies of each matrix, moved along either dimension and along both, in its own
    precision or in float32 if that is higher: about three times the memory of the members' weights, in addition to
    them.

    References
    ----------
    Crisostomi et al. 2024, C2M3: cycle-consistent multi-model merging, NeurIPS 2024, arXiv 2405.17897.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps} must be at least 1; use match_weights to match each member only once")
    if not 0 <= softness <= 1:
        raise ValueError(f"softness = {softness} must be from 0, the first matching, to 1, the centre")
    if spec.has_rotations:
        raise ValueError("c2m3 finds permutations alone; pass a spec without rotations, or use merge_many")
    merge = Members(spec, members, weights, start)
    everyone = [_counted(merge, member) for member in range(len(members))]
    first = _first(merge, everyone, rng)
    models = [
        RelaxedModel(spec, params, softened(matrices_of(each), softness))
        for params, each in zip(everyone, first, strict=True)
    ]
    objective = _risen_(models, steps, tolerance)
    permutations = [closest(spec, model.matrices) for model in models]
    final = objective_of([permute(params, spec, each) for params, each in zip(everyone, permutations, strict=True)])
    merged = merge.merged(permutations, [merge.spread(merge.mean(permutations))], rng)
    return C2M3(merged.params, merged.permutations, merged.spreads, objective, final)


def _risen_(models: Sequence[RelaxedModel], steps: int, tolerance: float) -> list[float]:
    """Move relaxed models to where the objective is largest; return it at the start and after each step."""
    objective = [objective_of([model.params for model in models])]
    in_vain = 0
    for _ in range(steps):
        targets = targets_of(models)
        step = step_of(models, targets)
        scale = tolerance * abs(step.value)
        # In float32, what a step promises is reached up to rounding.
        if step.slope <= scale or step.value <= objective[-1]:
            break
        for model, target in zip(models, targets, strict=True):
            model.step_(target, step.t)
        in_vain = in_vain + 1 if step.value - objective[-1] < scale else 0
        objective.append(step.value)
        if in_vain == PATIENCE:
            break
    return objective


def _counted(merge: Members, member: int) -> Params:
    """Return the entries of a member that determine which units belong together, in at least single precision."""
    model, spec = merge.models[member], merge.spec
    kept = merge.counted(member, {})
    for key, value in kept.items():
        exact = torch.promote_types(model[key].dtype, torch.float32)
        # Centred gates are rounded, all else is the member's own.
        kept[key] = (value if key in spec.gates else model[key].detach()).to(exact)
    return kept


def _first(merge: Members, everyone: Sequence[Params], rng: np.random.Generator) -> list[Permutation]:
    """Return the matchings with the start, or with the member of the largest norm: they depend on no order."""
    hub = max(everyone, key=square) if merge.start is None else merge.start
    seed = int(rng.integers(2**63))

    def matched(model: Params, own: Params) -> Permutation:
        if own is hub:  # with itself each unit stays in place
            return identity(merge.spec)
        return match_weights(merge.spec, hub, model, rng=np.random.default_rng(seed)).permutation

    return list(map(matched, merge.models, everyone))
