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
    owners = np.empty(len(labels), dtype=np.int64)
    owners[rng.permutation(len(labels))] = np.arange(len(labels)) % clients
    return Partition.from_owners(owners, clients)
