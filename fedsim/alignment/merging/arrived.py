"""Models that clients sent, matched as far as they can be."""

from collections.abc import Callable, Sequence

import numpy as np

from fedsim.alignment.merging.merged import Merged
from fedsim.alignment.symmetries.norms import absorbed_part
from fedsim.alignment.symmetries.permutations import Permutation, Spec
from fedsim.models.params import Params


def matched_parts(
    spec: Spec,
    members: Sequence[Params],
    weights: Sequence[float],
    start: Params | None,
    merge: Callable[..., Merged],
    rng: np.random.Generator,
) -> tuple[list[Params], list[Permutation]]:
    """Return models, or the same part of each, with what brings their units to the places of a start.

    Scales of norms that are not 1, as of an update that was damaged on its way, move into the layers after them. Where
    they cannot, nothing may be rotated: the model stays as it is, and its permutation is empty.

    Parameters
    ----------
    weights
        One positive number per model.
    start
        Model or part with the places. Default: the model with the largest weight.
    merge
        Function that matches them, such as `fedsim.alignment.merging.merging.merge_many`.
    """
    ready = [absorbed_part(member, spec.norms) for member in members]
    fit = [place for place, each in enumerate(ready) if each is not None]
    taken = [dict(own if each is None else each) for own, each in zip(members, ready, strict=True)]
    found = [Permutation() for _ in members]
    if fit:
        if start is None:
            start = taken[max(fit, key=weights.__getitem__)]
        elif (absorbed := absorbed_part(start, spec.norms)) is not None:
            start = dict(absorbed)
        else:  # scales only take part in the matching, where they say nothing
            start = {key: value for key, value in start.items() if key not in {norm.weight for norm in spec.norms}}
        own = [weights[place] for place in fit]
        merged = merge(spec, [taken[place] for place in fit], weights=own, rng=rng, start=start)
        for place, permutation in zip(fit, merged.permutations, strict=True):
            found[place] = permutation
    return taken, found
