"""Clients that hold the same examples, and differ only in the order in which they train on them."""

import numpy as np
from numpy.typing import NDArray

from partitions.partition import Partition
from partitions.split import Split, hold_out


def copies(
    labels: NDArray[np.int64], clients: int, rng: np.random.Generator, *, validation: float, test: float
) -> Split:
    """Give every client all examples, and hold out the same ones for all.

    Parameters
    ----------
    validation, test
        Shares that are held out, as in `partitions.split.hold_out`; passed by the run.

    Raises
    ------
    ValueError
        If there are fewer than 2 examples.

    References
    ----------
    Frankle et al. 2020, Linear mode connectivity and the lottery ticket hypothesis, arXiv 1912.05671: what SGD noise
    alone does to models of one initialisation.
    """
    everything = Partition(np.arange(len(labels)), np.array([0, len(labels)]))
    once = hold_out(everything, rng, validation=validation, test=test)
    return Split(*(_repeated(part, clients) for part in once.parts))


def _repeated(part: Partition, clients: int) -> Partition:
    return Partition(np.tile(part.indices, clients), np.arange(clients + 1) * len(part.indices))
