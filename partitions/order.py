"""A stable order of small whole numbers, in linear time."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def stable_order(keys: NDArray[np.int64], bound: int) -> NDArray[np.int64]:
    """Return the positions of the keys from the smallest key to the largest, equal keys in their original order.

    Parameters
    ----------
    keys
        Keys to sort, shape [n], from 0 to ``bound - 1``.
    bound
        Upper bound of the keys, at most 2**32.

    Notes
    -----
    NumPy's stable sort is a radix sort for 16 bits only, ten times as fast as its sort of 64 bits; larger keys are
    sorted by their lower half and then by their upper half.
    """
    if bound <= 1 << 16:
        return _order_of_16_bits(keys)
    order = _order_of_16_bits(keys & 0xFFFF)
    return order[_order_of_16_bits(keys[order] >> 16)]


def _order_of_16_bits(keys: NDArray[Any]) -> NDArray[np.int64]:
    return np.argsort(keys.astype(np.uint16), kind="stable")
