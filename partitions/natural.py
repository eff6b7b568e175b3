"""Natural clients: one writer, speaker or device each."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from partitions.columns import find_column
from partitions.grouping import grouped
from partitions.partition import Partition


def natural(
    labels: NDArray[np.int64],
    clients: int,
    rng: np.random.Generator,
    *,
    ids: Mapping[str, NDArray[np.int64]],
    column: str = "",
    min_size: int = 2,
) -> Partition:
    """Make each client one writer, speaker or other id of the data.

    Parameters
    ----------
    ids
        Id columns of the data by name: the id of each example, shape [examples], from 0; passed by the run.
    column
        Name of the column to use; optional if there is only one.
    min_size
        Smallest number of examples of an id; ids with fewer are not used.

    Raises
    ------
    ValueError
        If ``min_size`` is less than 1, there is no such column, or it has fewer ids than there are clients.

    Notes
    -----
    If there are more ids than clients, a uniform random sample of them is used, without the examples of the others.
    Clients are in the order of their ids: numbers by size, texts as texts are sorted.

    References
    ----------
    Caldas et al. 2018, LEAF: a benchmark for federated settings, arXiv 1812.01097.
    """
    if min_size < 1:
        raise ValueError(f"min_size = {min_size} must be at least 1, as a client needs examples")
    name, column_ids = find_column(ids, column)
    examples = grouped(column_ids)
    large = np.flatnonzero(examples.sizes >= min_size)
    if len(large) < clients:
        raise ValueError(
            f"{clients} clients need as many ids, and column {name!r} has {len(large)} with min_size = {min_size} "
            "examples or more in the training set, without what test_share sets aside; use fewer clients or a smaller "
            "min_size"
        )
    chosen = np.sort(rng.choice(large, clients, replace=False))
    used = np.zeros(len(examples), dtype=bool)
    used[chosen] = True
    return Partition(
        examples.indices[np.repeat(used, examples.sizes)],
        np.concatenate([[0], np.cumsum(examples.sizes[chosen])]),
    )
