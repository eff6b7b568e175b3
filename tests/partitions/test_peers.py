"""Our schemes against the partitioners of Flower Datasets, which others compare their results with."""

import os
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

# Read when it is imported: nothing here needs the network.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import numpy as np
import pytest
from scipy.stats import ks_2samp

from partitions import PARTITIONS

pytest.importorskip("flwr_datasets", reason="flwr-datasets is not installed")
datasets = pytest.importorskip("datasets", reason="flwr-datasets is not installed")
peers = pytest.importorskip("flwr_datasets.partitioner", reason="flwr-datasets is not installed")

CLASSES, CLIENTS, SEEDS = 8, 5, 160
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), 150))
WRITERS = np.random.default_rng(1).permutation(np.repeat(np.arange(6), [100, 150, 200, 200, 250, 300]))
# Fewer than one in a hundred pairs of samples of the same distribution are as far apart.
UNLIKELY = 0.01


class Table(datasets.Dataset):  # type: ignore[misc]
    """What Flower's partitioners ask of a data set, in a hundredth of the time that theirs takes."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def num_rows(self) -> int:
        return len(self)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def unique(self, column: str) -> list[int]:
        return np.unique(self.columns[column]).tolist()

    def select(self, rows: Iterable[int]) -> "Table":
        return Table(**{name: column[np.asarray(rows, dtype=int)] for name, column in self.columns.items()})

    def __del__(self) -> None:
        """There are no files to close."""


TABLE = Table(label=LABELS, writer=WRITERS)


@pytest.fixture(scope="module")
def dataset() -> Any:
    return datasets.Dataset.from_dict({"label": LABELS, "writer": WRITERS})


def counts_of_peer(partitioner: Any, dataset: Any, clients: Iterable[int]) -> np.ndarray:
    """Return the label counts of some clients of a partitioner of Flower Datasets, shape [clients, classes]."""
    partitioner.dataset = dataset
    held = [np.array(partitioner.load_partition(client)["label"], dtype=int) for client in clients]
    return np.array([np.bincount(row, minlength=CLASSES) for row in held])


def counts_of_ours(scheme: str, seed: int, clients: int = CLIENTS, **options: Any) -> np.ndarray:
    partition = PARTITIONS[scheme](LABELS, clients, np.random.default_rng(seed), **options)
    return partition.label_counts(LABELS, CLASSES)


def compared(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, float]:
    """Return p-values for a client's number of examples of one class and for its size, a row for each seed."""
    seeds = np.arange(SEEDS)
    mine, other = (np.array(tables)[:, 0] for tables in (ours, theirs))
    return {
        "class": ks_2samp(mine[seeds, seeds % CLASSES], other[seeds, seeds % CLASSES]).pvalue,
        "size": ks_2samp(mine.sum(axis=1), other.sum(axis=1)).pvalue,
    }


@cache
def dirichlet_of_peer(alpha: float, balanced: bool) -> list[np.ndarray]:
    return [
        counts_of_peer(
            peers.DirichletPartitioner(
                num_partitions=CLIENTS,
                partition_by="label",
                alpha=alpha,
                min_partition_size=0,
                self_balancing=balanced,
                seed=seed,
            ),
            TABLE,
            [0],
        )
        for seed in range(SEEDS)
    ]


def dirichlet_of_ours(alpha: float, balanced: bool) -> list[np.ndarray]:
    return [counts_of_ours("dirichlet", seed, alpha=alpha, min_size=0, balanced=balanced) for seed in range(SEEDS)]


@pytest.mark.slow
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_dirichlet_counts_and_sizes_are_distributed_as_flowers(alpha: float, balanced: bool) -> None:
    values = compared(dirichlet_of_ours(alpha, balanced), dirichlet_of_peer(alpha, balanced))
    assert min(values.values()) > UNLIKELY, values


@pytest.mark.slow
def test_the_comparison_tells_another_alpha_and_balancing_from_theirs() -> None:
    theirs = dirichlet_of_peer(0.3, False)
    assert compared(dirichlet_of_ours(0.6, False), theirs)["class"] < UNLIKELY / 10
    assert compared(dirichlet_of_ours(0.3, True), theirs)["size"] < UNLIKELY / 10


@pytest.mark.slow
def test_client_dirichlet_counts_are_distributed_as_flowers_inner_dirichlet() -> None:
    # Theirs has a concentration for each class, ours one for the whole vector. Many small clients: few are filled when
    # classes are used up, where theirs adds to a random client each time and ours completes one after the other.
    theirs, ours = [], []
    for seed in range(SEEDS):
        partitioner = peers.InnerDirichletPartitioner([12] * 100, partition_by="label", alpha=0.5, seed=seed)
        theirs.append(counts_of_peer(partitioner, TABLE, [seed % 100]))
        ours.append(counts_of_ours("client_dirichlet", seed, 100, alpha=0.5 * CLASSES)[seed % 100 :])
    values = compared([rows[:1] for rows in ours], theirs)
    assert values["class"] > UNLIKELY, values


@pytest.mark.slow
def test_pathological_clients_hold_as_many_classes_as_flowers() -> None:
    for seed in range(20):
        partitioner = peers.PathologicalPartitioner(
            num_partitions=16,
            partition_by="label",
            num_classes_per_partition=3,
            class_assignment_mode="deterministic",
            seed=seed,
        )
        theirs = counts_of_peer(partitioner, TABLE, range(16))
        ours = counts_of_ours("shards", seed, 16, classes_per_client=3)
        assert ((ours > 0).sum(axis=1) == 3).all()
        assert ((theirs > 0).sum(axis=1) == 3).all()
        # Each class has 6 clients in both, and 150 examples for them.
        assert sorted(ours[ours > 0]) == sorted(theirs[theirs > 0])


def test_iid_sizes_are_flowers(dataset: Any) -> None:
    theirs = counts_of_peer(peers.IidPartitioner(num_partitions=7), dataset, range(7)).sum(axis=1)
    assert sorted(counts_of_ours("iid", 0, 7).sum(axis=1)) == sorted(theirs)


def test_natural_clients_are_flowers(dataset: Any) -> None:
    theirs = counts_of_peer(peers.NaturalIdPartitioner(partition_by="writer"), dataset, range(6))
    ours = counts_of_ours("natural", 0, 6, ids={"writer": WRITERS})
    assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))
