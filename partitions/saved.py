"""Index sets from a file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partitions.split import Split


def saved(labels: NDArray[np.int64], clients: int, rng: np.random.Generator, *, path: str) -> Split:
    """Read the clients' train, validation and test sets from a file that `Split.save` wrote.

    The run's shares for validation and test do not apply; its ``test_skew`` only decides whether a feature skew
    applies to the test sets.

    Parameters
    ----------
    path
        Path of the ``.npz`` file.

    Raises
    ------
    ValueError
        If the file is damaged, belongs to other labels, or has another number of clients.
    OSError
        If the file does not exist.
    """
    split = Split.load(Path(path), labels)
    if len(split) != clients:
        raise ValueError(f"{path} holds {len(split)} clients and the run has {clients}; set clients = {len(split)}")
    return split
