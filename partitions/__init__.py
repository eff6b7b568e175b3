"""Ways to split a data set over clients: ``PARTITIONS`` maps a scheme's name to its function.

A scheme is a function ``scheme(labels, clients, rng, *, options) -> Partition`` that imports NumPy only.
"""

from collections.abc import Callable

from partitions.dirichlet import dirichlet
from partitions.iid import iid
from partitions.partition import Partition, total_variation
from partitions.shards import shards

__all__ = ["PARTITIONS", "Partition", "total_variation"]

PARTITIONS: dict[str, Callable[..., Partition]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
}
