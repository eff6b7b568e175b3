"""Ways to split a data set over clients: ``PARTITIONS`` maps a scheme's name to its function.

A scheme is a function ``scheme(labels, clients, rng, *, options) -> Partition`` that imports NumPy and the standard
library only. One that needs the ids that come with the examples, such as the writer of each, has a keyword parameter
``ids``, which the run passes; it is not an option. `saved` and `copies` return a `Split`, which also says what each
client trains and tests on; for the others, `hold_out` makes it. One that holds out by itself has keyword parameters
``validation`` and ``test``, which the run passes too. `LabelCounts` measures how different the clients are.
"""

from collections.abc import Callable

from partitions.client_dirichlet import client_dirichlet
from partitions.copies import copies
from partitions.dirichlet import dirichlet
from partitions.domain import domain
from partitions.iid import iid
from partitions.matrix import matrix
from partitions.natural import natural
from partitions.partition import Partition
from partitions.quantity import quantity
from partitions.saved import saved
from partitions.shards import shards
from partitions.split import Split, hold_out
from partitions.statistics import LabelCounts

__all__ = ["PARTITIONS", "LabelCounts", "Partition", "Split", "hold_out"]

PARTITIONS: dict[str, Callable[..., Partition | Split]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "client_dirichlet": client_dirichlet,
    "shards": shards,
    "quantity": quantity,
    "matrix": matrix,
    "natural": natural,
    "domain": domain,
    "copies": copies,
    "saved": saved,
}
