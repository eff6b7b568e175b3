"""Feature skew: each client's examples come from one domain."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from partitions.columns import find_column
from partitions.grouping import deal, shuffled
from partitions.partition import Partition


def domain(
    labels: NDArray[np.int64],
    clients: int,
    rng: np.random.Generator,
    *,
    ids: Mapping[str, NDArray[np.int64]],
    column: str = "",
) -> Partition:
    """Give each client one domain of the data; the clients of a domain share its shuffled examples evenly.

    Parameters
    ----------
    ids
        Id columns of the data by name: the id of each example, shape [examples], from 0; passed by the run.
    column
        Name of the column with the domain; optional if there is only one.

    Raises
    ------
    ValueError
        If there is no such column, there are fewer clients than domains, or a domain has fewer examples than clients.

    Notes
    -----
    Client k has domain k modulo the number of domains, counting those that have examples.

    References
    ----------
    Li et al. 2021, FedBN: federated learning on non-IID features, arXiv 2102.07623.
    """
    name, column_ids = find_column(ids, column)
    examples = shuffled(column_ids, rng)
    domains = np.flatnonzero(examples.sizes)
    if clients < len(domains):
        raise ValueError(
            f"{clients} clients cannot cover the {len(domains)} domains of column {name!r}; use at least "
            f"{len(domains)} clients"
        )
    holders = Partition.from_owners(domains[np.arange(clients) % len(domains)], len(examples))
    short = np.flatnonzero(examples.sizes < holders.sizes)
    if len(short):
        raise ValueError(
            f"domain {short[0]} of column {name!r} has {examples.sizes[short[0]]} examples for "
            f"{holders.sizes[short[0]]} clients; use fewer clients"
        )
    return Partition.from_owners(deal(examples, holders), clients)
