import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partitions import PARTITIONS, Split, hold_out
from partitions.archive import KEYS
from tests.partitions.cases import (
    CLIENTS,
    LABELS,
    Draw,
    N,
    rows,
    same,
    save,
    split_of,
    variants,
)


@variants
def test_holding_out_keeps_each_clients_examples_and_takes_the_shares_of_the_rule(
    draw: Draw, scheme: str, changes: dict
) -> None:
    partition = draw(scheme, **changes)
    if partition.sizes.min() < 2:
        return
    split = hold_out(partition, np.random.default_rng(0), validation=0.15, test=0.25)
    for client, held in enumerate(partition):
        train, validation, test = split.client(client)
        n = len(held)
        assert len(test) == min(max(1, round(0.25 * n)), n - 1)
        assert len(validation) == min(max(1, round(0.15 * n)), n - len(test) - 1)
        assert sorted([*train, *validation, *test]) == sorted(held)
        assert split.whole[client].tolist() == [*train, *validation, *test]


def test_shares_are_rounded_to_even_and_leave_one_example_to_train() -> None:
    partition = rows([7, 1], [0, 2, 3], list(range(10, 20)), [*range(20, 30), 4, 5, 6, 8, 9, 30])
    split = hold_out(partition, np.random.default_rng(0), validation=0.25, test=0.25)
    # 2.5 is rounded to 2, and 0.5 and 0.75 are raised to 1.
    assert split.test.sizes.tolist() == [1, 1, 2, 4]
    assert split.validation.sizes.tolist() == [0, 1, 2, 4]
    assert split.train.sizes.tolist() == [1, 1, 6, 8]
    none = hold_out(partition, np.random.default_rng(0), validation=0.0, test=0.9)
    assert none.validation.sizes.tolist() == [0, 0, 0, 0]
    assert none.test.sizes.tolist() == [1, 2, 9, 14]


def test_every_example_is_held_out_with_equal_chances() -> None:
    partition, counts = rows([3, 0, 4, 1], [2, 5]), np.zeros((3, 6))
    for seed in range(2000):
        split = hold_out(partition, np.random.default_rng(seed), validation=0.25, test=0.5)
        for row, part in zip(counts, split.parts, strict=True):
            row[part.indices] += 1
    expected = np.array([[1, 1, 2, 1, 1, 2], [1, 1, 0, 1, 1, 0], [2, 2, 2, 2, 2, 2]]) / 4
    assert np.abs(counts / 2000 - expected).max() < 4 * np.sqrt(0.25 / 2000)


def test_with_tests_set_aside_only_validation_is_held_out_as_a_share_of_both() -> None:
    partition, tests = rows([0, 1, 2, 3, 4, 5], [6]), rows([7, 8, 9, 10], [])
    split = hold_out(partition, np.random.default_rng(0), validation=0.3, test=0.5, tests=tests)
    assert same(split.test, tests)
    assert split.validation.sizes.tolist() == [3, 0]
    assert sorted([*split.train[0], *split.validation[0]]) == [0, 1, 2, 3, 4, 5]


def test_impossible_splits_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="client 1 has 1 examples and needs at least 2"):
        hold_out(rows([0, 1], [2]), rng, validation=0.1, test=0.2)
    with pytest.raises(ValueError, match="client 0 has 0 examples and needs at least 1"):
        hold_out(rows([], [2]), rng, validation=0.1, test=0.2, tests=rows([0], [1]))
    with pytest.raises(ValueError, match="tests has 1 clients and the partition 2"):
        hold_out(rows([1], [2]), rng, validation=0.1, test=0.2, tests=rows([0]))
    with pytest.raises(ValueError, match=r"test = 1\.0 must be"):
        hold_out(rows([0, 1]), rng, validation=0.1, test=1.0)
    with pytest.raises(ValueError, match=r"validation = -0\.1 must be"):
        hold_out(rows([0, 1]), rng, validation=-0.1, test=0.1)


def test_positions_of_a_subset_are_mapped_to_the_whole() -> None:
    split = Split(rows([0], [2, 4]), rows([], [1]), rows([3], []))
    mapped = split.positions(np.array([10, 11, 12, 13, 14]))
    assert [part.indices.tolist() for part in mapped.parts] == [[10, 12, 14], [11], [13]]
    assert [part.sizes.tolist() for part in mapped.parts] == [[1, 2], [0, 1], [1, 0]]


def test_a_saved_split_comes_back_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "split.npz", 4)
    assert all(same(*parts) for parts in zip(Split.load(path, LABELS).parts, split_of(4).parts, strict=True))
    assert all(
        same(*parts)
        for parts in zip(
            PARTITIONS["saved"](LABELS, CLIENTS, np.random.default_rng(0), path=str(path)).parts,
            split_of(4).parts,
            strict=True,
        )
    )
    assert [file.name for file in path.parent.iterdir()] == ["split.npz"]
    content = path.read_bytes()
    save(path, 4)
    assert path.read_bytes() == content


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "split.npz")
    content = path.read_bytes()

    def full(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="disk full"):
        save(path, 1)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def rewrite(path: Path, **changes: Any) -> None:
    with np.load(path) as file:
        np.savez(path, **(dict(file) | changes))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "not a complete .npz"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "not a complete .npz"),
    "flipped": (
        lambda path: path.write_bytes(path.read_bytes().replace(path.read_bytes()[300:308], b"\0damage\0")),
        "not a complete .npz",
    ),
    "pickle": (lambda path: path.write_bytes(pickle.dumps([1, 2])), "not a complete .npz"),
    "pickled array": (lambda path: rewrite(path, train_indices=np.array([{}], dtype=object)), "not a complete .npz"),
    "array": (
        lambda path: (np.save(path.with_suffix(".npy"), LABELS), path.with_suffix(".npy").replace(path)),
        "not a complete .npz",
    ),
    "more keys": (lambda path: rewrite(path, more=np.zeros(1)), "must hold train_indices"),
    "float": (lambda path: rewrite(path, test_indices=np.zeros(3)), "test_indices has type float64"),
    "labels": (lambda path: rewrite(path, labels_sha256=np.array("0")), "other labels"),
    "clients": (lambda path: rewrite(path, test_offsets=np.array([0, 80])), "offsets of lengths"),
    "offsets": (lambda path: rewrite(path, test_offsets=np.arange(CLIENTS + 1)), "test_offsets must rise from 0"),
    "falling": (
        lambda path: rewrite(path, test_offsets=split_of().test.offsets[[0, 2, 1, *range(3, CLIENTS + 1)]]),
        "test_offsets must rise from 0",
    ),
    "range": (lambda path: rewrite(path, train_indices=np.full(len(split_of().train.indices), N)), "to 401 and must"),
    "empty test set": (
        lambda path: rewrite(
            path,
            test_offsets=np.concatenate([[0, 0], split_of().test.offsets[2:]]),
            test_indices=split_of().test.indices,
        ),
        "gives client 0 no test example",
    ),
    "overlap": (lambda path: rewrite(path, test_indices=split_of().train.indices[:80]), "in 2 parts"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_on_one_line(tmp_path: Path, damage: str) -> None:
    path = save(tmp_path / "split.npz")
    apply, message = DAMAGE[damage]
    apply(path)
    with pytest.raises(ValueError, match=message) as caught:
        Split.load(path, LABELS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_split_of_other_labels_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "split.npz")
    for labels in (LABELS[:-1], LABELS[::-1]):
        with pytest.raises(ValueError, match="other labels"):
            Split.load(path, labels)
    assert len(Split.load(path, LABELS.astype(np.int32))) == CLIENTS
    assert set(np.load(path).files) == set(KEYS)
