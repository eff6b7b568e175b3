"""Examples grouped by a number: their class, domain or owner."""

import numpy as np
from numpy.typing import NDArray

from partitions.partition import Partition


def grouped(values: NDArray[np.int64], groups: int | None = None) -> Partition:
    """Return the positions of each value, in data set order.

    Parameters
    ----------
    values
        Group of each example, shape [n], from 0 to ``groups - 1``.
    groups
        Number of groups (default: the largest value plus one).

    Raises
    ------
    ValueError
        If a value is negative, or not below ``groups``.
    """
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, -1)
    if groups is None:
        groups = high + 1
    if low < 0 or high >= groups:
        raise ValueError(
            f"class indices and ids from {low} to {high} must be from 0 to {groups - 1}; number them from 0, "
            "without a marker for missing ones"
        )
    return Partition.from_owners(values, groups)


def shuffled(values: NDArray[np.int64], rng: np.random.Generator, groups: int | None = None) -> Partition:
    """Return the positions of each value as `grouped` does, but in random order."""
    order = rng.permutation(len(values))
    rows = grouped(values[order], groups)
    return Partition(order[rows.indices], rows.offsets)


def ranks(rows: Partition) -> NDArray[np.int64]:
    """Return the position of each index within its group, from 0, shape [indices]."""
    return np.arange(len(rows.indices)) - np.repeat(rows.offsets[:-1], rows.sizes)


def deal(rows: Partition, holders: Partition) -> NDArray[np.int64]:
    """Deal each group's examples in turn to the group's holders and return the holder of each, shape [examples].

    Parameters
    ----------
    rows
        Examples of each group; each example of the data set is in one of them.
    holders
        Holders of each group; at least one for a group with examples.
    """
    turn = ranks(rows) % np.repeat(holders.sizes, rows.sizes)
    owners = np.empty(len(rows.indices), dtype=np.int64)
    owners[rows.indices] = holders.indices[np.repeat(holders.offsets[:-1], rows.sizes) + turn]
    return owners
