"""Each client's examples split into train, validation and test."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from partitions.archive import PARTS, read_archive, write_archive
from partitions.grouping import ranks, shuffled
from partitions.partition import Partition


@dataclass(frozen=True)
class Split:
    """What each client trains, validates and tests on: three partitions over the same clients.

    Parameters
    ----------
    train, validation, test
        Positions in the training set; no example is in two of the partitions.
    """

    train: Partition
    validation: Partition
    test: Partition

    def __len__(self) -> int:
        return len(self.train)

    def client(self, client: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the positions of a client's train, validation and test examples."""
        return self.train[client], self.validation[client], self.test[client]

    @property
    def parts(self) -> tuple[Partition, Partition, Partition]:
        """The train, validation and test sets."""
        return self.train, self.validation, self.test

    @property
    def whole(self) -> Partition:
        """All examples of each client: train, validation and test, in this order."""
        offsets = sum((part.offsets for part in self.parts[1:]), start=self.train.offsets)
        indices = np.empty(offsets[-1], dtype=np.int64)
        starts = offsets[:-1]
        for part in self.parts:
            indices[np.repeat(starts - part.offsets[:-1], part.sizes) + np.arange(len(part.indices))] = part.indices
            starts = starts + part.sizes
        return Partition(indices, offsets)

    def positions(self, mapping: NDArray[np.int64]) -> Self:
        """Return the split with ``mapping[i]`` for each position i.

        Parameters
        ----------
        mapping
            Position in the whole data set of each example of the subset that was split, shape [examples].
        """
        return type(self)(*(Partition(mapping[part.indices], part.offsets) for part in self.parts))

    def save(self, path: Path, labels: NDArray[np.int64]) -> None:
        """Write the index sets to an ``.npz`` file, completely or not at all, with a fingerprint of the labels.

        Parameters
        ----------
        labels
            Labels of the training set that the positions refer to.
        """
        arrays = {}
        for name, part in zip(PARTS, self.parts, strict=True):
            arrays[f"{name}_indices"] = part.indices.astype(np.int64)
            arrays[f"{name}_offsets"] = part.offsets.astype(np.int64)
        write_archive(path, arrays, labels)

    @classmethod
    def load(cls, path: Path, labels: NDArray[np.int64]) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the file is damaged, its sets are not valid or overlap, or it belongs to other labels.
        OSError
            If the file does not exist.
        """
        arrays = read_archive(path, labels)
        return cls(*(Partition(arrays[f"{part}_indices"], arrays[f"{part}_offsets"]) for part in PARTS))


def hold_out(
    partition: Partition,
    rng: np.random.Generator,
    *,
    validation: float,
    test: float,
    tests: Partition | None = None,
) -> Split:
    """Hold out a share of each client's examples, drawn at random, for validation and for test.

    Parameters
    ----------
    validation, test
        Shares of a client's examples, at least 0 and less than 1. Of n examples
        ``min(max(1, round(test * n)), n - 1)`` are for test, and, unless the share is 0, of the others
        ``min(max(1, round(validation * n)), rest - 1)`` for validation.
    tests
        Test sets that were already set aside; ``test`` is then not used, n includes them, and only validation examples
        are held out.

    Raises
    ------
    ValueError
        If a share is out of range, ``tests`` has another number of clients, or a client has fewer than 2 examples (with
        ``tests``, none).
    """
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} = {share} must be at least 0 and less than 1, a share of a client's examples")
    if tests is not None and len(tests) != len(partition):
        raise ValueError(
            f"tests has {len(tests)} clients and the partition {len(partition)}; the numbers must be equal"
        )
    _check_fill(partition.sizes, 2 if tests is None else 1)
    sizes = partition.sizes
    tested = np.minimum(_at_least_one(test, sizes), sizes - 1) if tests is None else np.zeros_like(sizes)
    held = sizes if tests is None else sizes + tests.sizes
    validated = np.minimum(_at_least_one(validation, held), sizes - tested - 1) if validation > 0 else 0 * sizes

    mixed = shuffled(np.repeat(np.arange(len(sizes)), sizes), rng, len(sizes))
    rank = ranks(mixed)
    is_test = rank < np.repeat(tested, sizes)
    is_train = rank >= np.repeat(tested + validated, sizes)
    examples = partition.indices[mixed.indices]
    return Split(
        train=_rows(examples[is_train], sizes - tested - validated),
        validation=_rows(examples[~is_test & ~is_train], validated),
        test=_rows(examples[is_test], tested) if tests is None else tests,
    )


def _check_fill(sizes: NDArray[np.int64], least: int) -> None:
    smallest = int(sizes.argmin())
    if sizes[smallest] < least:
        needed = "2, one to train and one to test on" if least == 2 else "1, to train on"
        raise ValueError(
            f"client {smallest} has {sizes[smallest]} examples and needs at least {needed}; use fewer clients, more "
            "examples or, if the scheme has it, a larger min_size"
        )


def _at_least_one(share: float, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.maximum(1, np.rint(share * sizes).astype(np.int64))


def _rows(indices: NDArray[np.int64], sizes: NDArray[np.int64]) -> Partition:
    return Partition(indices, np.concatenate([[0], np.cumsum(sizes)]))
