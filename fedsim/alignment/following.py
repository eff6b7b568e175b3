"""What a part of a model follows when another part of it has been aligned: orders and rotations that travel."""

from collections.abc import Iterable, Mapping

import torch

from fedsim.alignment.symmetries.permutations import Axis, Permutation, permute_entry
from fedsim.alignment.symmetries.rotations import is_identity, is_rotation, rotation_key
from fedsim.models.params import Params


def to_follow(permutation: Permutation, orders: Iterable[str], dtype: torch.dtype) -> Permutation:
    """Return those of some orders and their rotations that change something: 32-bit integers, and numbers of a type."""
    keys = [key for name in orders for key in (name, rotation_key(name)) if key in permutation]
    return {
        key: permutation[key].to(dtype if is_rotation(key) else torch.int32)
        for key in keys
        if not is_identity(key, permutation[key])
    }


def follow(params: Params, axes: Mapping[str, tuple[Axis, ...]], followed: Permutation) -> Params:
    """Return the entries that have axes, moved by what `to_follow` has returned."""
    permutation = {key: value if is_rotation(key) else value.long() for key, value in followed.items()}
    return {key: permute_entry(params[key], own, permutation) for key, own in axes.items()}
