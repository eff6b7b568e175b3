from typing import Any

import numpy as np
import pytest

from partitions import PARTITIONS, Partition, total_variation

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), [30, 50, 40, 40, 40, 40, 40, 40, 40, 41]))
OPTIONS: dict[str, dict[str, Any]] = {"iid": {}, "dirichlet": {"alpha": 0.5, "min_size": 5}, "shards": {}}
CLIENTS = 8


def split(scheme: str, seed: int = 0, labels: np.ndarray = LABELS, clients: int = CLIENTS, **options: Any) -> Partition:
    return PARTITIONS[scheme](labels, clients, np.random.default_rng(seed), **(OPTIONS[scheme] | options))


def test_the_laws_cover_every_scheme() -> None:
    assert OPTIONS.keys() == PARTITIONS.keys()


@pytest.mark.parametrize("scheme", PARTITIONS)
def test_every_example_is_at_exactly_one_client(scheme: str) -> None:
    partition = split(scheme)
    assert len(partition) == CLIENTS
    assert np.sort(np.concatenate(list(partition))).tolist() == list(range(len(LABELS)))


@pytest.mark.parametrize("scheme", PARTITIONS)
def test_the_same_seed_gives_the_same_partition_and_another_seed_another(scheme: str) -> None:
    first, again, other = split(scheme, 1), split(scheme, 1), split(scheme, 2)
    assert np.array_equal(first.indices, again.indices)
    assert np.array_equal(first.offsets, again.offsets)
    assert not np.array_equal(first.indices, other.indices)


@pytest.mark.parametrize("scheme", PARTITIONS)
def test_label_counts_agree_with_a_plain_count(scheme: str) -> None:
    partition = split(scheme)
    plain = [[int((LABELS[indices] == label).sum()) for label in range(10)] for indices in partition]
    assert partition.label_counts(LABELS, 10).tolist() == plain


def test_iid_sizes_differ_by_at_most_one() -> None:
    assert set(split("iid").sizes) == {50, 51}


def test_dirichlet_is_more_skewed_the_smaller_alpha_is() -> None:
    skews = {
        alpha: np.mean(
            [
                total_variation(split("dirichlet", seed, alpha=alpha, min_size=2).label_counts(LABELS, 10))
                for seed in range(20)
            ]
        )
        for alpha in (0.1, 1.0, 10.0)
    }
    assert skews[0.1] > skews[1.0] + 0.1 > skews[10.0] + 0.2


def test_dirichlet_shares_have_the_mean_and_variance_of_the_closed_form() -> None:
    # A client's share of a class is Beta(a, (K - 1) a): mean 1/K, variance (K - 1) / (K^2 (K a + 1)).
    alpha, clients, n, draws = 0.5, 4, 1000, 1500
    labels = np.zeros(n, dtype=np.int64)
    shares = np.array(
        [split("dirichlet", seed, labels, clients, alpha=alpha, min_size=1).sizes / n for seed in range(draws)]
    )
    # Draws with an empty client are redrawn, which for these settings happens too rarely to matter here.
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
    standard_error = np.sqrt(variance / draws)
    assert np.abs(shares.mean(axis=0) - 1 / clients).max() < 4 * standard_error
    assert np.abs(shares.var(axis=0) / variance - 1).max() < 0.15


def test_no_client_gets_every_remainder() -> None:
    # Cutting at floor(C n) gives the last of many clients one example of nearly every class.
    labels = np.repeat(np.arange(200), 10)
    sizes = np.array([split("dirichlet", seed, labels, 100, alpha=0.5, min_size=1).sizes for seed in range(20)])
    assert abs(sizes[:, -1].mean() - 20) < 4
    assert abs(sizes[:, 0].mean() - 20) < 4


def test_dirichlet_keeps_the_minimum_size() -> None:
    assert min(split("dirichlet", seed, alpha=0.3, min_size=12).sizes.min() for seed in range(10)) >= 12


def test_shards_give_each_client_exactly_k_classes_and_each_class_its_clients_evenly() -> None:
    counts = split("shards", classes_per_client=3).label_counts(LABELS, 10)
    assert ((counts > 0).sum(axis=1) == 3).all()
    assert set((counts > 0).sum(axis=0)) <= {2, 3}
    for column in counts.T:
        held = column[column > 0]
        assert held.max() - held.min() <= 1


@pytest.mark.parametrize(
    ("scheme", "clients", "options", "message"),
    [
        ("iid", 1000, {}, "1000 clients cannot share 401 examples"),
        ("dirichlet", 8, {"alpha": 0.0}, "alpha = 0.0"),
        ("dirichlet", 8, {"alpha": float("nan")}, "alpha = nan"),
        ("dirichlet", 8, {"min_size": 0}, "min_size = 0"),
        ("dirichlet", 8, {"max_draws": 0}, "max_draws = 0"),
        ("dirichlet", 100, {"min_size": 5}, "need 500 examples and there are 401"),
        ("dirichlet", 20, {"alpha": 0.01, "min_size": 19, "max_draws": 5}, "none of 5 Dirichlet draws"),
        ("shards", 8, {"classes_per_client": 11}, "classes_per_client = 11 must be from 1 to 10"),
        ("shards", 3, {"classes_per_client": 2}, "without a client"),
        ("shards", 400, {"classes_per_client": 2}, "use fewer clients"),
    ],
)
def test_impossible_requests_are_named(scheme: str, clients: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(scheme, clients=clients, **options)


def test_total_variation_by_hand() -> None:
    # Pooled (1/2, 1/2); the first client is off by 1/2, the second by 1/6.
    assert total_variation(np.array([[2, 0], [2, 4]])) == pytest.approx((1 / 2 + 1 / 6) / 2)


def test_total_variation_of_equal_clients_is_zero_and_of_disjoint_ones_grows() -> None:
    assert total_variation(np.array([[3, 1], [6, 2]])) == 0
    assert total_variation(np.eye(10, dtype=int)) == pytest.approx(0.9)


def test_a_client_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IndexError, match="client 8 of 8"):
        split("iid")[8]
