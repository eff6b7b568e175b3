"""The places and rotations of units within blocks with the largest total gain."""

from collections.abc import Mapping

import numpy as np
import scipy  # its parts are imported when they are used
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.alignment.matching.assignment import check_gains
from fedsim.alignment.symmetries.permutations import Symmetry
from fedsim.alignment.symmetries.rotations import best_rotations, largest_gains, rotation_key


def best_turns(symmetry: Symmetry, gains: Mapping[str, NDArray[np.float64]]) -> dict[str, Tensor]:
    """Return the orders and rotations of a symmetry with the largest sum of gains over all its units.

    Parameters
    ----------
    gains
        Gains by the name of the order, shape [units, units]: entry [i, j] is that of old unit ``j`` at place ``i``.

    Returns
    -------
    dict[str, Tensor]
        The orders of the symmetry, and the matrices that go with them.

    Raises
    ------
    ValueError
        If a gain is not finite.

    Notes
    -----
    Exact where no parts are rotated alike: each pair of blocks has its best matrices in closed form, and then blocks
    are assigned by these matrices' gains. Products are those of the blocks' units, not of whole projections. With
    several parts that are rotated alike, as the query heads of a key head, the matrices of each pair of blocks come
    from the units without copies, then the places of the parts from these, and then the matrices again from all units:
    not always the best, so that a search takes them only if they raise its objective.
    """
    check_gains(gains)
    blocks = symmetry.blocks
    pairs = {name: _pairs(torch.from_numpy(gain), blocks) for name, gain in gains.items()}
    places = _places_of_parts(symmetry, pairs)
    summed = [_summed(symmetry, number, pairs, places) for number in range(len(symmetry.rotations))]
    values = [largest_gains(each.kind, own) for each, own in zip(symmetry.rotations, summed, strict=True)]
    rows, chosen = scipy.optimize.linear_sum_assignment(torch.stack(values).sum(0).numpy(), maximize=True)
    best = dict[str, Tensor]()
    for rotation, own in zip(symmetry.rotations, summed, strict=True):
        matrices = best_rotations(rotation.kind, own[rows, chosen])
        for name, copies in rotation.copies.items():
            width = symmetry.widths[name] // copies
            inside = places[copies][rows, chosen] * width
            parts = (torch.from_numpy(chosen)[:, None] * copies * width + inside).flatten()
            best[name] = (parts[:, None] + torch.arange(width)).flatten()
            best[rotation_key(name)] = matrices.repeat_interleave(copies, 0)
    return best


def _pairs(gain: Tensor, blocks: int) -> Tensor:
    """Return the gains of each pair of blocks, shape [blocks, blocks, width, width]."""
    return gain.unflatten(1, (blocks, -1)).unflatten(0, (blocks, -1)).transpose(1, 2)


def _summed(symmetry: Symmetry, number: int, pairs: Mapping[str, Tensor], places: Mapping[int, Tensor]) -> Tensor:
    """Return the gains of one group's matrices over all orders and parts, shape [blocks, blocks, width, width]."""
    return torch.stack(
        [
            _parts(pairs[name], copies)
            .gather(3, places[copies][..., None, None, None].expand(-1, -1, -1, 1, *_shape(pairs[name], copies)))
            .sum((2, 3))
            for name, copies in symmetry.rotations[number].copies.items()
            if copies in places
        ]
    ).sum(0)


def _shape(pairs: Tensor, copies: int) -> tuple[int, int]:
    return (pairs.shape[-1] // copies,) * 2


def _parts(pairs: Tensor, copies: int) -> Tensor:
    """Return the gains of each pair of parts of each pair of blocks, [blocks, blocks, copies, copies, width, width]."""
    return pairs.unflatten(3, (copies, -1)).unflatten(2, (copies, -1)).transpose(3, 4)


def _places_of_parts(symmetry: Symmetry, pairs: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Return the part of each old block at each place of each new one, by the number of parts.

    The shape is [blocks, blocks, copies].
    """
    blocks = symmetry.blocks
    places = {1: torch.zeros(blocks, blocks, 1, dtype=torch.int64)}
    several = {copies for rotation in symmetry.rotations for copies in rotation.copies.values()} - {1}
    for copies in sorted(several):
        gains = torch.zeros(blocks, blocks, copies, copies, dtype=torch.float64)
        for number, rotation in enumerate(symmetry.rotations):
            if 1 not in rotation.copies.values():
                continue
            matrices = best_rotations(rotation.kind, _summed(symmetry, number, pairs, places))
            for name, own in rotation.copies.items():
                if own == copies:
                    gains += (_parts(pairs[name], copies) * matrices[:, :, None, None]).sum((-2, -1))
        places[copies] = torch.zeros(blocks, blocks, copies, dtype=torch.int64)
        for place, block in np.ndindex(blocks, blocks):
            order = scipy.optimize.linear_sum_assignment(gains[place, block].numpy(), maximize=True)[1]
            places[copies][place, block] = torch.from_numpy(order)
    return places
