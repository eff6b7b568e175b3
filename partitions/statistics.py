"""Distances of the clients' labels from the pooled labels."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from partitions.partition import Partition


@dataclass(frozen=True)
class LabelCounts:
    """Label counts of all clients in compressed rows: only the classes that a client holds.

    What is undefined without labels, such as a distance, is NaN for a client that has none.

    Parameters
    ----------
    offsets
        Boundaries of the clients, shape [clients + 1]: client ``k`` has the entries from ``offsets[k]`` to
        ``offsets[k + 1]``.
    labels, counts
        Classes and the client's number of examples of each, in the order of the classes, shape [entries].
    classes
        Number of classes.
    """

    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    counts: NDArray[np.int64]
    classes: int

    @classmethod
    def of(cls, partition: Partition, labels: NDArray[np.int64], classes: int, *, ignored: int | None = None) -> Self:
        """Count the labels of each client.

        Parameters
        ----------
        labels
            Class of each example of the data set, shape [n], or of each of its targets, shape [n, targets], which
            then count separately.
        ignored
            Label that does not count, such as that of padding.

        Raises
        ------
        ValueError
            If a label is not from 0 to ``classes - 1``.
        """
        held = labels[partition.indices]
        targets = held.shape[1] if held.ndim == 2 else 1
        owners = np.repeat(np.arange(len(partition)), partition.sizes * targets)
        held = held.ravel()
        if ignored is not None and not (counted := held != ignored).all():
            held, owners = held[counted], owners[counted]
        if len(held) and not (held.min() >= 0 and held.max() < classes):
            raise ValueError(f"labels are from {held.min()} to {held.max()} and must be from 0 to {classes - 1}")
        keys = owners * classes + held
        if len(partition) * classes <= len(keys):  # a counter for each pair costs less than to sort
            every = np.bincount(keys, minlength=len(partition) * classes)
            keys = np.flatnonzero(every)
            counts = every[keys]
        else:
            keys, counts = np.unique(keys, return_counts=True)
        offsets = np.searchsorted(keys, np.arange(len(partition) + 1) * classes)
        return cls(offsets, keys % classes, counts, classes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def totals(self) -> NDArray[np.int64]:
        """Number of labels of each client, shape [clients]."""
        return np.diff(np.concatenate([[0], np.cumsum(self.counts)])[self.offsets])

    @property
    def pooled(self) -> NDArray[np.float64]:
        """Share of each class in the labels of all clients together, shape [classes]; NaN if there are none."""
        with np.errstate(invalid="ignore"):
            return np.bincount(self.labels, self.counts, self.classes) / self.counts.sum()

    def effective_classes(self) -> NDArray[np.float64]:
        """Return the exponential of the entropy of each client's labels, shape [clients].

        The value is 1 for a client with one class and k for one with k classes in equal parts.
        """
        shares = self._shares()
        return np.exp(-self._sum(shares * np.log(shares)))

    def largest_shares(self) -> NDArray[np.float64]:
        """Return the share of each client's most frequent class, shape [clients]: the accuracy of always giving it."""
        return self._reduced(np.maximum, self._shares())

    def total_variation(self) -> NDArray[np.float64]:
        """Return the total variation distance of each client's labels from the pooled labels, shape [clients]."""
        shares, pooled = self._shares(), self.pooled[self.labels]
        return (self._sum(np.abs(shares - pooled)) + self._absent(pooled)) / 2

    def jensen_shannon(self) -> NDArray[np.float64]:
        """Return the Jensen-Shannon divergence of each client's labels from the pooled labels, nats, shape [clients].

        The value is 0 where they are the same and ln 2 where they have no class in common.
        """
        shares, pooled = self._shares(), self.pooled[self.labels]
        middle = (shares + pooled) / 2
        present = self._sum(shares * np.log(shares / middle) + pooled * np.log(pooled / middle))
        # A class that the client lacks has half the pooled share in the middle: pooled * ln(pooled / (pooled / 2)).
        return np.maximum(present + self._absent(pooled) * np.log(2), 0) / 2

    @property
    def _rows(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def _shares(self) -> NDArray[np.float64]:
        return self.counts / self.totals[self._rows]

    def _sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._reduced(np.add, values)

    def _reduced(self, operation: np.ufunc, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what an operation makes of each client's values; NaN for a client without any."""
        result = np.full(len(self), np.nan)
        has_labels = np.diff(self.offsets) > 0
        if has_labels.any():
            result[has_labels] = operation.reduceat(values, self.offsets[:-1][has_labels])
        return result

    def _absent(self, pooled: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the pooled share of the classes that each client lacks."""
        return np.maximum(1 - self._sum(pooled), 0)
