"""The assignment of units to places with the largest total gain."""

from collections.abc import Mapping

import numpy as np
import scipy  # its parts are imported when they are used
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.alignment.symmetries.permutations import Symmetry


def best_orders(
    symmetry: Symmetry, gains: Mapping[str, NDArray[np.float64]], prices: NDArray[np.float64] | None = None
) -> dict[str, Tensor]:
    """Return the orders of a symmetry with the largest sum of gains over all its units.

    Parameters
    ----------
    gains
        Gains by the name of the order, shape [units, units]: entry [i, j] is that of old unit ``j`` at place ``i``.
    prices
        Prices of the old blocks, zeros at first, shape [blocks]. They are changed in place, to be given again with the
        next gains: where these have changed little, the assignment is found in about half the time.

    Returns
    -------
    dict[str, Tensor]
        The orders of the symmetry; where all gains are equal, units stay in place, unless prices differ.

    Raises
    ------
    ValueError
        If a gain is not finite.

    Notes
    -----
    The assignment is exact: units are assigned within each pair of blocks, and then blocks by the gains of their units.
    It is so whatever the prices, as every assignment pays all of them. At the right ones, which are the dual variables
    of the best assignment, each place prefers its own block, and the search has nothing to look for; each call moves
    the prices towards these.
    """
    check_gains(gains)
    values: NDArray[np.float64] = np.zeros((symmetry.blocks, symmetry.blocks))
    units = {}
    for name in symmetry.widths:
        gained, units[name] = _within_blocks(gains[name], symmetry.blocks)
        values = values + gained
    net = values if prices is None else values - prices
    places, blocks = scipy.optimize.linear_sum_assignment(net, maximize=True)
    if prices is not None:
        # At less than this, a place would rather have another's block than its own.
        np.maximum(prices, (values - net[places, blocks][:, None]).max(0), out=prices)
        prices -= prices.min()
    return {
        name: torch.from_numpy((blocks[:, None] * width + units[name][places, blocks]).ravel())
        for name, width in symmetry.widths.items()
    }


def check_gains(gains: Mapping[str, NDArray[np.float64]]) -> None:
    """Raise `ValueError` if a gain is not finite."""
    for name, gain in gains.items():
        if not np.isfinite(gain).all():
            raise ValueError(f"a gain of order {name!r} is not finite; match models whose entries are all finite")


def _within_blocks(gains: NDArray[np.float64], blocks: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return, for each place and each block, the largest gain of the block's units there, and their order for it."""
    width = len(gains) // blocks
    order = np.zeros((blocks, blocks, width), dtype=np.int64)
    if width == 1:
        return gains, order
    values = np.empty((blocks, blocks))
    for place, block in np.ndindex(blocks, blocks):
        own = gains[place * width : (place + 1) * width, block * width : (block + 1) * width]
        rows, order[place, block] = scipy.optimize.linear_sum_assignment(own, maximize=True)
        values[place, block] = own[rows, order[place, block]].sum()
    return values, order
