from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from partitions import LabelCounts, Partition
from tests.partitions.cases import CLIENTS, LABELS, Draw, rows, variants


def dense_of(counts: LabelCounts) -> list[list[int]]:
    """Return the counts of all classes, client by client, with zeros for those that a client does not hold."""
    table = np.zeros((len(counts), counts.classes), dtype=np.int64)
    for client, (start, end) in enumerate(pairwise(counts.offsets)):
        table[client, counts.labels[start:end]] = counts.counts[start:end]
    return table.tolist()


@variants
def test_sparse_statistics_agree_with_scipy_on_dense_counts(draw: Draw, scheme: str, changes: dict) -> None:
    partition = draw(scheme, **changes)
    filled = Partition.from_owners(np.repeat(np.arange(CLIENTS), partition.sizes), CLIENTS)
    kept = np.flatnonzero(filled.sizes)
    partition = rows(*(partition[client].tolist() for client in kept))
    counts, dense = LabelCounts.of(partition, LABELS, 11), partition.label_counts(LABELS, 11)
    assert len(counts) == len(kept)
    assert counts.counts.min() > 0
    assert dense_of(counts) == dense.tolist()
    assert counts.totals.tolist() == partition.sizes.tolist()
    pooled = dense.sum(axis=0) / dense.sum()
    assert np.allclose(counts.pooled, pooled)
    assert np.allclose(counts.effective_classes(), np.exp(entropy(dense, axis=1)))
    assert np.allclose(counts.largest_shares(), dense.max(1) / dense.sum(1))
    assert np.allclose(counts.jensen_shannon(), jensenshannon(dense, pooled[None], axis=1) ** 2, atol=1e-12)
    assert np.allclose(counts.total_variation(), np.abs(dense / dense.sum(1, keepdims=True) - pooled).sum(1) / 2)


@pytest.mark.parametrize("classes", [3, 500])
def test_counts_are_the_same_whether_pairs_are_counted_or_sorted(classes: int) -> None:
    stream = np.random.default_rng(0)
    partition = Partition.from_owners(stream.integers(7, size=200), 8)  # the last client holds nothing
    labels = stream.integers(classes, size=200)
    counts = LabelCounts.of(partition, labels, classes)
    assert dense_of(counts) == partition.label_counts(labels, classes).tolist()
    assert counts.counts.min() > 0


def test_several_targets_of_an_example_all_count() -> None:
    targets = np.array([[0, 2, 2], [1, 1, 2], [0, 0, 0]])
    counts = LabelCounts.of(rows([2, 1], [], [0]), targets, 3)
    assert dense_of(counts) == [[3, 2, 1], [0, 0, 0], [1, 0, 2]]
    assert counts.totals.tolist() == [6, 0, 3]


def test_what_is_undefined_without_labels_is_nan_and_nothing_else_changes() -> None:
    labels = np.array([0, 1, 1, 2, 2, 2])
    full = LabelCounts.of(rows([0, 1, 2], [3], [4, 5, 0]), labels, 3)
    holes = LabelCounts.of(rows([], [0, 1, 2], [], [], [3], [4, 5, 0], []), labels, 3)
    for measure in ("effective_classes", "largest_shares", "total_variation", "jensen_shannon"):
        values = getattr(holes, measure)()
        assert np.isnan(values).tolist() == [True, False, True, True, False, False, True]
        assert values[[1, 4, 5]].tolist() == getattr(full, measure)().tolist()
        assert np.isnan(getattr(LabelCounts.of(rows([], []), labels, 3), measure)()).all()


def test_statistics_by_hand() -> None:
    counts = LabelCounts.of(rows([0, 1], [2, 3]), np.array([0, 0, 1, 1]), 2)
    assert counts.effective_classes().tolist() == [1, 1]
    assert counts.largest_shares().tolist() == [1, 1]
    assert counts.total_variation().tolist() == [0.5, 0.5]
    # Half the client's ln(1 / (3/4)) and half the pooled 1/2 ln((1/2) / (3/4)) + 1/2 ln 2.
    expected = (np.log(4 / 3) + np.log(2 / 3) / 2 + np.log(2) / 2) / 2
    assert counts.jensen_shannon() == pytest.approx(expected)


def test_labels_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="labels are from -1 to 2 and must be from 0 to 2"):
        LabelCounts.of(rows([0, 1]), np.array([-1, 2]), 3)


def test_total_variation_by_hand() -> None:
    # Pooled (1/2, 1/2); the first client is off by 1/2, the second by 1/6.
    counts = LabelCounts.of(rows([0, 1], [2, 3, 4, 5, 6, 7]), np.array([0, 0, 0, 0, 1, 1, 1, 1]), 2)
    assert counts.total_variation() == pytest.approx([1 / 2, 1 / 6])


def test_equal_clients_are_at_distance_zero_and_disjoint_ones_far_apart() -> None:
    alike = LabelCounts.of(rows([0, 2], [1, 3]), np.array([0, 0, 1, 1]), 2)
    assert alike.total_variation().tolist() == alike.jensen_shannon().tolist() == [0, 0]
    apart = LabelCounts.of(rows(*([k] for k in range(10))), np.arange(10), 10)
    assert apart.total_variation() == pytest.approx([0.9] * 10)
