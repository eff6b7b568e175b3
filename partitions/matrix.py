"""Label distributions given as a matrix."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partitions.archive import check_is_file
from partitions.grouping import shuffled
from partitions.partition import Partition
from partitions.sizes import share_out


def matrix(
    labels: NDArray[np.int64],
    clients: int,
    rng: np.random.Generator,
    *,
    matrix: list[list[float]] | None = None,
    path: str = "",
) -> Partition:
    """Distribute each class in proportion to its column of a given matrix.

    Parameters
    ----------
    matrix
        Non-negative weights, such as shares or counts, with one row per client and one column per class. Counts that
        add up to the examples of each class are reproduced exactly.
    path
        File with the matrix instead: ``.csv`` with commas, ``.txt`` with spaces, both of numbers without a header, or
        ``.npy``.

    Raises
    ------
    ValueError
        If neither or both are given, the file cannot be read, the shape or an entry is wrong, or a class that has
        examples has no client.
    OSError
        If the file does not exist.

    Notes
    -----
    Each example is used once. Fractional numbers are rounded by largest remainders, ties at random.

    References
    ----------
    The general form of label distribution skew in Li et al. 2021, NIID-Bench, arXiv 2102.02079.
    """
    if (matrix is None) == (path == ""):
        raise ValueError(
            f"matrix and path: exactly one must be given, and path = {path!r} with "
            f"{'no matrix' if matrix is None else 'a matrix'}; set one of the two"
        )
    weights, source = (_read(Path(path)), path) if matrix is None else (_from_lists(matrix), "matrix")
    examples = shuffled(labels, rng)
    _check(weights, source, clients, examples.sizes)
    counts = np.zeros((len(examples), clients), dtype=np.int64)
    for label in np.flatnonzero(examples.sizes):
        counts[label] = share_out(examples.sizes[label], weights[:, label], rng)
    owners = np.empty(len(labels), dtype=np.int64)
    owners[examples.indices] = np.repeat(np.tile(np.arange(clients), len(examples)), counts.ravel())
    return Partition.from_owners(owners, clients)


def _from_lists(rows: list[list[float]]) -> NDArray[np.float64]:
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1:
        raise ValueError(f"matrix has rows of lengths {lengths}; each row must have one entry per class")
    return np.array(rows, dtype=np.float64)


def _read(path: Path) -> NDArray[np.float64]:
    readers = {
        ".csv": lambda: np.loadtxt(path, delimiter=",", ndmin=2, encoding="utf-8-sig"),
        ".txt": lambda: np.loadtxt(path, ndmin=2, encoding="utf-8-sig"),
        ".npy": lambda: np.load(path, mmap_mode="r", allow_pickle=False),
    }
    if path.suffix not in readers:
        raise ValueError(f"path = '{path}' ends in {path.suffix!r}; it must end in one of {', '.join(readers)}")
    check_is_file(path)
    try:
        read = np.asarray(readers[path.suffix]())
    except Exception as error:  # a damaged file may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a matrix of numbers ({reason}); write plain numbers only") from error
    if read.ndim != 2 or read.dtype.kind not in "biuf":
        raise ValueError(
            f"{path} has {read.dtype} of shape {read.shape}; it must have numbers, one row per client, one column per "
            "class"
        )
    return read.astype(np.float64)


def _check(weights: NDArray[np.float64], source: str, clients: int, class_sizes: NDArray[np.int64]) -> None:
    # Classes without an example may have a column.
    if len(weights) != clients or weights.shape[1] < len(class_sizes):
        raise ValueError(
            f"{source} has shape {weights.shape} and must have {(clients, len(class_sizes))}: one row per client, one "
            "column per class"
        )
    wrong = np.argwhere(~((weights >= 0) & np.isfinite(weights)))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(
            f"{source} has {weights[row, column]} for client {row} and class {column}; entries must be finite and at "
            "least 0"
        )
    lost = np.flatnonzero((weights[:, : len(class_sizes)].max(axis=0) == 0) & (class_sizes > 0))
    if len(lost):
        raise ValueError(
            f"{source} gives class {lost[0]} with its {class_sizes[lost[0]]} examples to no client; its column needs "
            "an entry above 0"
        )
