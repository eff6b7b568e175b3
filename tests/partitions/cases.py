"""Labels, ids and options with which every scheme is tested."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partitions import PARTITIONS, Partition, Split, hold_out

CLASS_SIZES = [30, 50, 40, 40, 40, 40, 40, 40, 40, 41]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), CLASS_SIZES))
N, CLIENTS = len(LABELS), 8
IDS = {
    "writer": np.random.default_rng(1).permutation(
        np.repeat(np.arange(12), [1, 20, 35, 35, 35, 35, 35, 40, 40, 40, 40, 45])
    ),
    "place": np.random.default_rng(2).permutation(np.repeat([0, 2, 3], [100, 101, 200])),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "iid": {},
    "dirichlet": {"alpha": 0.5, "min_size": 5},
    "client_dirichlet": {"alpha": 2.0},
    "shards": {},
    "quantity": {"alpha": 0.7},
    "matrix": {"matrix": np.random.default_rng(3).random((CLIENTS, 10)).tolist()},
    "natural": {"ids": IDS, "column": "writer"},
    "domain": {"ids": IDS, "column": "place"},
    "saved": {},
    "copies": {"validation": 0.1, "test": 0.2},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((scheme, {}) for scheme in PARTITIONS),
    ("dirichlet", {"balanced": True, "min_size": 0}),
    ("client_dirichlet", {"alpha": 1e-5}),
    ("client_dirichlet", {"size_sigma": 1.0}),
    ("shards", {"classes_per_client": 7}),
    ("quantity", {"sizes": "lognormal", "alpha": None, "sigma": 1.5}),
]
variants = pytest.mark.parametrize(("scheme", "changes"), VARIANTS)
Draw = Callable[..., Partition]


def save(path: Path, seed: int = 0) -> Path:
    split_of(seed).save(path, LABELS)
    return path


def split_of(seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    return hold_out(PARTITIONS["iid"](LABELS, CLIENTS, rng), rng, validation=0.1, test=0.2)


def rows(*indices: list[int]) -> Partition:
    sizes = [len(row) for row in indices]
    return Partition(
        np.array([index for row in indices for index in row], dtype=np.int64), np.concatenate([[0], np.cumsum(sizes)])
    )


def same(first: Partition, second: Partition) -> bool:
    return np.array_equal(first.indices, second.indices) and np.array_equal(first.offsets, second.offsets)
