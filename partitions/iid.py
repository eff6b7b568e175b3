"""Independent and identically distributed clients."""

import numpy as np
from numpy.typing import NDArray

from partitions.partition import Partition


def iid(labels: NDArray[np.int64], clients: int, rng: np.random.Generator) -> Partition:
    """Deal shuffled examples evenly; sizes differ by at most one.

    Raises
    ------
    ValueError
        If there are more clients than examples.

    References
    ----------
    McMahan et al. 2017, Communication-efficient learning of deep networks, arXiv 1602.05629, section 3.
    """
    if clients > len(labels):
        raise ValueError(f"{clients} clients cannot share {len(labels)} examples; use fewer clients or more examples")
    dealt = rng.permutation(len(labels))
    turns, more = divmod(len(labels), clients)
    sizes = turns + (np.arange(clients) < more)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    if clients <= 2**16:  # numbers of two bytes are sorted in linear time
        owners = np.empty(len(labels), np.uint16)
        owners[dealt] = np.arange(len(labels)) % clients
        return Partition(np.argsort(owners, kind="stable"), offsets)
    # A column for each client, of which the first ones have one example more; a client's stay in data set order.
    columns, last = dealt[: turns * clients].reshape(turns, clients), dealt[turns * clients :]
    first, others = np.vstack([columns[:, :more], last]), columns[:, more:]
    indices = np.concatenate([np.sort(each.T, axis=1).ravel() for each in (first, others)])
    return Partition(indices, offsets)
