"""The result of every scheme: which examples each client holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from partitions.order import stable_order


@dataclass(frozen=True)
class Partition:
    """Index sets of all clients in compressed rows: one array, cut at ``offsets``.

    Parameters
    ----------
    indices
        Positions in the data set, grouped by client: integers, shape [examples].
    offsets
        Boundaries of the clients, integers, shape [clients + 1]: client ``k`` holds
        ``indices[offsets[k]:offsets[k + 1]]``.
    """

    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def from_owners(cls, owners: NDArray[np.int64], clients: int) -> Self:
        """Build from the owner of each example, shape [examples]; examples stay in data set order."""
        sizes = np.bincount(owners, minlength=clients)
        return cls(stable_order(owners, clients), np.concatenate([[0], np.cumsum(sizes)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> NDArray[np.int64]:
        if not 0 <= client < len(self):
            raise IndexError(f"client {client} of {len(self)} does not exist; clients are numbered from 0")
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return (self[client] for client in range(len(self)))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Examples per client, shape [clients]."""
        return np.diff(self.offsets)

    def label_counts(self, labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
        """Return how many examples of each class each client holds, shape [clients, classes]."""
        owners = np.repeat(np.arange(len(self)), self.sizes)
        flat = np.bincount(owners * classes + labels[self.indices], minlength=len(self) * classes)
        return flat.reshape(len(self), classes)
