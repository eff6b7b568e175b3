import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from partitions import PARTITIONS, LabelCounts
from partitions.draws import log_gammas, polya_urns, weights_of
from partitions.order import stable_order
from partitions.sizes import share_out
from tests.partitions.cases import CLASS_SIZES, CLIENTS, IDS, LABELS, OPTIONS, Draw, N, same, variants


def test_the_laws_cover_every_scheme() -> None:
    assert OPTIONS.keys() == PARTITIONS.keys()


@variants
def test_every_example_is_at_one_client_unless_its_id_is_no_client(draw: Draw, scheme: str, changes: dict) -> None:
    partition = draw(scheme, **changes)
    assert len(partition) == CLIENTS
    if scheme == "copies":
        assert all(sorted(client) == list(range(N)) for client in partition)
        return
    held = np.sort(np.concatenate(list(partition)))
    if scheme == "natural":
        assert len(set(held.tolist())) == len(held) < N
    else:
        assert held.tolist() == list(range(N))


@variants
def test_the_same_seed_gives_the_same_partition_and_another_seed_another(
    draw: Draw, scheme: str, changes: dict
) -> None:
    assert same(draw(scheme, 1, **changes), draw(scheme, 1, **changes))
    assert not np.array_equal(draw(scheme, 1, **changes).indices, draw(scheme, 2, **changes).indices)


@variants
def test_a_scheme_leaves_its_inputs_alone(draw: Draw, scheme: str, changes: dict) -> None:
    labels = LABELS.copy()
    labels.setflags(write=False)
    draw(scheme, labels=labels, **changes)
    assert np.array_equal(labels, LABELS)


DIGEST = """
import hashlib, sys
sys.path.insert(0, ".")
import numpy as np
from partitions import PARTITIONS
from tests.partitions.cases import CLIENTS, LABELS, OPTIONS
digest = hashlib.sha256()
for scheme in PARTITIONS:
    if scheme != "saved":
        partition = PARTITIONS[scheme](LABELS, CLIENTS, np.random.default_rng(5), **OPTIONS[scheme])
        partition = partition.whole if scheme == "copies" else partition
        digest.update(partition.indices.tobytes() + partition.offsets.tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_every_process_draws_the_same_sets() -> None:
    root = Path(__file__).parents[2]
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST], cwd=root, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@variants
def test_label_counts_agree_with_a_plain_count(draw: Draw, scheme: str, changes: dict) -> None:
    partition = draw(scheme, **changes)
    plain = [[int((LABELS[indices] == label).sum()) for label in range(10)] for indices in partition]
    assert partition.label_counts(LABELS, 10).tolist() == plain


@pytest.mark.parametrize("bound", [10, 1 << 16, 70_000, 1 << 32])
def test_stable_order_is_numpys(bound: int) -> None:
    rng = np.random.default_rng(0)
    keys = rng.choice(rng.integers(bound, size=300), 1000)
    assert stable_order(keys, bound).tolist() == np.argsort(keys, kind="stable").tolist()


def test_shares_are_whole_add_up_and_are_off_by_less_than_one() -> None:
    rng = np.random.default_rng(0)
    for total in (0, 1, 7, 1000):
        weights = rng.random(13) ** 4
        counts = share_out(total, weights, rng)
        assert counts.sum() == total
        assert np.abs(counts - total * weights / weights.sum()).max() < 1
    assert share_out(10, np.array([3.0, 0.0, 7.0]), rng).tolist() == [3, 0, 7]


def test_equal_remainders_are_dealt_at_random() -> None:
    winners = {int(share_out(1, np.ones(3), np.random.default_rng(seed)).argmax()) for seed in range(30)}
    assert winners == {0, 1, 2}


@pytest.mark.parametrize(("examples", "clients"), [(12, 4), (14, 4), (5, 5), (7, 1), (65_540, 65_537)])
def test_iid_deals_shuffled_examples_in_turn(examples: int, clients: int) -> None:
    partition = PARTITIONS["iid"](np.zeros(examples, dtype=np.int64), clients, np.random.default_rng(3))
    dealt = np.random.default_rng(3).permutation(examples)
    assert [own.tolist() for own in partition] == [sorted(dealt[k::clients].tolist()) for k in range(clients)]


def test_iid_sizes_differ_by_at_most_one(draw: Draw) -> None:
    assert set(draw("iid").sizes) == {50, 51}


def test_dirichlet_is_more_skewed_the_smaller_alpha_is(draw: Draw) -> None:
    def skew(alpha: float) -> float:
        partitions = [draw("dirichlet", seed, alpha=alpha, min_size=1) for seed in range(20)]
        return float(np.mean([LabelCounts.of(partition, LABELS, 10).total_variation() for partition in partitions]))

    assert skew(0.1) > skew(1.0) + 0.1 > skew(10.0) + 0.2


@pytest.mark.slow
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("alpha", "clients", "n"), [(0.5, 4, 60), (0.05, 3, 10), (20.0, 5, 7)])
def test_dirichlet_shares_have_the_moments_of_the_dirichlet_multinomial(
    draw: Draw, alpha: float, clients: int, n: int, balanced: bool
) -> None:
    # With one class nobody is full before it, so that balancing changes nothing.
    labels, draws = np.zeros(n, dtype=np.int64), 4000
    shares = np.array(
        [
            draw("dirichlet", seed, labels, clients, alpha=alpha, min_size=0, balanced=balanced).sizes / n
            for seed in range(draws)
        ]
    )
    variance = (clients - 1) / clients**2 * (n + clients * alpha) / (n * (1 + clients * alpha))
    assert np.abs(shares.mean(axis=0) - 1 / clients).max() < 4 * np.sqrt(variance / draws)
    assert np.abs(shares.var(axis=0) / variance - 1).max() < 0.12


def test_the_urn_has_the_probabilities_of_the_dirichlet_multinomial() -> None:
    # Two examples, 3 clients, alpha 1/2: together with probability (alpha + 1) / (3 alpha + 1) = 3/5.
    owners = polya_urns(np.array([1, 2, 0, 2] * 5000), 3, 0.5, np.random.default_rng(0)).reshape(-1, 5)
    assert abs((owners[:, 1] == owners[:, 2]).mean() - 3 / 5) < 4 * np.sqrt(0.24 / 5000)
    # Groups are independent: alike as often as three clients are.
    assert abs((owners[:, 2] == owners[:, 3]).mean() - 1 / 3) < 4 * np.sqrt(2 / 9 / 5000)


def test_the_urn_favours_no_place_in_a_class() -> None:
    alike = np.zeros((4, 4))
    for seed in range(4000):
        owners = polya_urns(np.array([4]), 5, 0.3, np.random.default_rng(seed))
        alike += owners[:, None] == owners
    pairs = alike[np.triu_indices(4, 1)] / 4000
    assert np.abs(pairs - 1.3 / 2.5).max() < 4 * np.sqrt(0.25 / 4000)


def test_extreme_alphas_give_one_owner_per_class_or_nearly_equal_shares(draw: Draw) -> None:
    one = draw("dirichlet", alpha=1e-300, min_size=0).label_counts(LABELS, 10)
    assert ((one > 0).sum(axis=0) == 1).all()
    even = [draw("dirichlet", seed, alpha=1e300, min_size=0).sizes for seed in range(50)]
    # Multinomial: variance n (K - 1) / K^2.
    assert np.var(even) == pytest.approx(N * 7 / 64, rel=0.3)


def test_no_client_gets_every_remainder(draw: Draw) -> None:
    # Cutting at floor(C n) gives the last of many clients one example of nearly every class.
    labels = np.repeat(np.arange(200), 10)
    sizes = np.array([draw("dirichlet", seed, labels, 100, alpha=0.5, min_size=0).sizes for seed in range(20)])
    assert abs(sizes[:, -1].mean() - 20) < 4
    assert abs(sizes[:, 0].mean() - 20) < 4


def test_dirichlet_keeps_the_minimum_size(draw: Draw) -> None:
    assert min(draw("dirichlet", seed, alpha=0.3, min_size=12).sizes.min() for seed in range(10)) >= 12


def test_balanced_dirichlet_clients_are_filled_by_one_class(draw: Draw) -> None:
    balanced, free = (
        np.array(
            [
                draw("dirichlet", seed, alpha=0.5, min_size=0, balanced=flag).label_counts(LABELS, 10)
                for seed in range(40)
            ]
        )
        for flag in (True, False)
    )
    # Without the class that filled it, at most its largest, a client is below its even share.
    below = balanced.sum(axis=2) - balanced.max(axis=2) < N / CLIENTS
    assert below.all()
    assert not (free.sum(axis=2) - free.max(axis=2) < N / CLIENTS).all()
    assert balanced.sum(axis=2).var() < free.sum(axis=2).var() / 2


def test_balancing_treats_all_classes_alike(draw: Draw) -> None:
    labels = np.repeat(np.arange(5), 40)
    holders = np.zeros(5)
    for seed in range(300):
        partition = draw("dirichlet", seed, labels, 6, alpha=1.0, min_size=0, balanced=True)
        holders += (partition.label_counts(labels, 5) > 0).sum(axis=0)
    assert np.ptp(holders / 300) < 0.5


def test_client_dirichlet_sizes_are_exact(draw: Draw) -> None:
    assert sorted(draw("client_dirichlet").sizes) == [50] * 7 + [51]
    uneven = np.array([draw("client_dirichlet", seed, size_sigma=1.0, min_size=9).sizes for seed in range(200)])
    assert uneven.min() >= 9
    # The spread of log-normal shares exceeds what equal ones can have.
    assert uneven.std() > 20


def test_client_dirichlet_has_the_mean_and_variance_of_its_first_client() -> None:
    # Two classes, 1/4 and 3/4, and so many examples that none is used up at the first of many clients.
    labels, alpha, size, draws = np.repeat([0, 1], [1000, 3000]), 2.0, 10, 3000
    counts = np.array(
        [
            PARTITIONS["client_dirichlet"](labels, 400, np.random.default_rng(seed), alpha=alpha).label_counts(
                labels, 2
            )
            for seed in range(draws // 400 + 1)
        ]
    )
    # Every example is used, so the mean over all clients is exact; few clients are touched by used-up classes.
    assert np.allclose(counts.mean(axis=(0, 1)), [2.5, 7.5])
    variance = size * (1 / 4) * (3 / 4) * (size + alpha) / (1 + alpha)
    assert counts[..., 0].var() == pytest.approx(variance, rel=0.12)


def test_a_client_of_tiny_alpha_holds_one_class_until_it_is_used_up(draw: Draw) -> None:
    labels = np.repeat(np.arange(4), 100)
    counts = draw("client_dirichlet", labels=labels, clients=40, alpha=1e-200).label_counts(labels, 4)
    assert ((counts > 0).sum(axis=1) == 1).all()
    huge = draw("client_dirichlet", labels=labels, clients=4, alpha=1e300).label_counts(labels, 4)
    assert (huge > 0).all()
    assert np.abs(huge[:, :2] - 25).mean() < 8


def test_no_client_is_always_the_one_that_gets_what_is_left(draw: Draw) -> None:
    # Nearly every client has one class but those that are filled last.
    labels, held = np.repeat(np.arange(5), 41), np.zeros(10)
    for seed in range(400):
        held += (draw("client_dirichlet", seed, labels, 10, alpha=1e-9).label_counts(labels, 5) > 0).sum(axis=1)
    assert held.mean() / 400 > 1.1
    assert np.ptp(held / 400) < 0.15


@pytest.mark.slow
def test_log_gammas_scaled_to_sum_one_are_a_dirichlet_draw() -> None:
    shapes, rng = np.array([0.2, 1.0, 3.0]), np.random.default_rng(0)
    shares = np.array(
        [weights / weights.sum() for weights in (weights_of(log_gammas(shapes, rng)) for _ in range(40_000))]
    )
    mean = shapes / shapes.sum()
    variance = mean * (1 - mean) / (shapes.sum() + 1)
    assert np.abs(shares.mean(axis=0) - mean).max() < 4 * np.sqrt(variance.max() / 40_000)
    assert np.allclose(shares.var(axis=0), variance, rtol=0.05)


def test_shards_give_each_client_exactly_k_classes_and_each_class_its_clients_evenly(draw: Draw) -> None:
    for k in (1, 3, 7, 10):
        counts = draw("shards", clients=11, classes_per_client=k).label_counts(LABELS, 10)
        assert ((counts > 0).sum(axis=1) == k).all()
        assert np.ptp((counts > 0).sum(axis=0)) <= 1
        for column in counts.T:
            held = column[column > 0]
            assert held.max() - held.min() <= 1


def test_classes_meet_at_a_client_with_equal_chances(draw: Draw) -> None:
    # 5 classes, 2 each: a hand is begun by one deck and completed by the next, which must not favour any pair.
    labels, pairs = np.repeat(np.arange(5), 20), np.zeros((5, 5))
    for seed in range(600):
        held = draw("shards", seed, labels, 5).label_counts(labels, 5) > 0
        pairs += held.T.astype(int) @ held
    chances = pairs[np.triu_indices(5, 1)] / 600
    assert np.abs(chances - 0.5).max() < 4 * np.sqrt(0.3 / 600)


def test_quantity_sizes_add_up_and_labels_stay_alike(draw: Draw) -> None:
    labels = np.random.default_rng(0).integers(3, size=6000)
    for options in ({"alpha": 0.3}, {"sizes": "lognormal", "alpha": None, "sigma": 1.0}):
        partition = draw("quantity", labels=labels, min_size=40, **options)
        assert partition.sizes.sum() == 6000
        assert partition.sizes.min() >= 40
        assert np.ptp(partition.sizes) > 500
        counts = partition.label_counts(labels, 3)
        assert np.abs(counts / counts.sum(axis=1, keepdims=True) - 1 / 3).max() < 0.25


@pytest.mark.slow
def test_dirichlet_quantity_has_the_variance_of_its_shares(draw: Draw) -> None:
    labels = np.zeros(10_000, dtype=np.int64)
    shares = np.array([draw("quantity", seed, labels, 4, alpha=0.5, min_size=0).sizes / 10_000 for seed in range(3000)])
    assert shares.var() == pytest.approx(3 / (16 * (4 * 0.5 + 1)), rel=0.08)


def test_lognormal_quantity_has_log_sizes_of_that_spread(draw: Draw) -> None:
    sizes = draw(
        "quantity", labels=np.zeros(400_000, int), clients=1000, sizes="lognormal", alpha=None, sigma=0.5
    ).sizes
    assert np.log(sizes).std() == pytest.approx(0.5, rel=0.1)


def test_a_matrix_of_counts_is_reproduced_exactly_whatever_its_scale(draw: Draw, tmp_path: Path) -> None:
    counts = draw("dirichlet", 3).label_counts(LABELS, 10)
    for scale in (1.0, 1 / 3, 1e-300, 1e300):
        assert np.array_equal(draw("matrix", matrix=(counts * scale).tolist()).label_counts(LABELS, 10), counts)
    np.savetxt(tmp_path / "table.csv", counts, delimiter=",", encoding="utf-8-sig")
    np.savetxt(tmp_path / "table.txt", counts, fmt="%d")
    np.save(tmp_path / "table.npy", counts)
    for path in sorted(tmp_path.glob("table.*")):
        assert np.array_equal(draw("matrix", matrix=None, path=str(path)).label_counts(LABELS, 10), counts)


def test_a_matrix_of_shares_is_met_to_within_one_example(draw: Draw) -> None:
    weights = np.array(OPTIONS["matrix"]["matrix"])
    wanted = weights / weights.sum(axis=0) * CLASS_SIZES
    assert np.abs(draw("matrix").label_counts(LABELS, 10) - wanted).max() < 1


def test_natural_clients_are_whole_ids_in_their_order(draw: Draw) -> None:
    writers = IDS["writer"]
    drawn = set()
    for seed in range(20):
        partition = draw("natural", seed)
        ids = [set(writers[indices].tolist()) for indices in partition]
        assert all(len(one) == 1 for one in ids)
        owners = [one.pop() for one in ids]
        assert owners == sorted(set(owners))
        assert partition.sizes.tolist() == [(writers == owner).sum() for owner in owners]
        drawn |= set(owners)
    # The first has one example only.
    assert drawn == set(range(1, 12))
    assert 1 not in writers[draw("natural", min_size=30, clients=10).indices]


def test_domain_clients_hold_one_domain_and_share_it_evenly(draw: Draw) -> None:
    partition = draw("domain")
    places = [sorted(set(IDS["place"][indices].tolist())) for indices in partition]
    assert places == [[0], [2], [3], [0], [2], [3], [0], [2]]
    assert partition.sizes.tolist() == [34, 34, 100, 33, 34, 100, 33, 33]


def test_the_only_column_need_not_be_named(draw: Draw) -> None:
    only = {"place": IDS["place"]}
    assert same(draw("domain", ids=only, column=""), draw("domain"))


@pytest.mark.parametrize(
    ("scheme", "clients", "options", "message"),
    [
        ("iid", 1000, {}, "1000 clients cannot share 401 examples"),
        ("dirichlet", 8, {"alpha": 0.0}, "alpha = 0.0"),
        ("dirichlet", 8, {"alpha": float("nan")}, "alpha = nan"),
        ("dirichlet", 8, {"min_size": -1}, "min_size = -1"),
        ("dirichlet", 8, {"max_draws": 0}, "max_draws = 0"),
        ("dirichlet", 100, {"min_size": 5}, "need 500 examples and there are 401"),
        ("dirichlet", 20, {"alpha": 0.01, "min_size": 19, "max_draws": 5}, "none of 5 Dirichlet draws"),
        ("client_dirichlet", 8, {"alpha": -1.0}, "alpha = -1.0"),
        ("client_dirichlet", 8, {"size_sigma": -1.0}, "size_sigma = -1.0"),
        ("client_dirichlet", 201, {}, "need 402 examples and there are 401"),
        ("shards", 8, {"classes_per_client": 11}, "classes_per_client = 11 must be from 1 to 10"),
        ("shards", 3, {"classes_per_client": 2}, "without a client"),
        ("shards", 400, {"classes_per_client": 2}, "use fewer clients"),
        ("quantity", 8, {"alpha": None}, "needs alpha"),
        ("quantity", 8, {"sigma": 1.0}, "takes no sigma"),
        ("quantity", 8, {"sizes": "lognormal"}, "needs sigma"),
        ("quantity", 8, {"alpha": 0.0}, "alpha = 0.0"),
        ("quantity", 8, {"sizes": "lognormal", "alpha": None, "sigma": -0.5}, "sigma = -0.5"),
        ("quantity", 8, {"min_size": 100}, "need 800 examples"),
        ("matrix", 8, {"matrix": None}, "exactly one must be given"),
        ("matrix", 8, {"path": "table.csv"}, "exactly one must be given"),
        ("matrix", 8, {"matrix": [[1.0], [1.0, 2.0]]}, r"rows of lengths \[1, 2\]"),
        ("matrix", 7, {}, r"shape \(8, 10\) and must have \(7, 10\)"),
        ("matrix", 2, {"matrix": [[1.0] * 10, [1.0] * 9 + [-1.0]]}, "-1.0 for client 1 and class 9"),
        ("matrix", 2, {"matrix": [[1.0] * 10, [float("inf")] * 10]}, "inf for client 1 and class 0"),
        ("matrix", 2, {"matrix": [[0.0] + [1.0] * 9] * 2}, "class 0 with its 30 examples to no client"),
        ("matrix", 2, {"matrix": None, "path": "table.json"}, "'.json'; it must end in one of .csv, .txt, .npy"),
        ("natural", 8, {"ids": {}}, "the data have no ids"),
        ("natural", 8, {"column": "speaker"}, "columns are: writer, place"),
        ("natural", 8, {"column": ""}, "must name one of the data's 2 id columns"),
        ("natural", 8, {"min_size": 40}, "has 5 with min_size = 40 .* in the training set, without what test_share"),
        ("natural", 8, {"min_size": 0}, "min_size = 0"),
        ("natural", 8, {"ids": {"writer": IDS["writer"] - 1}}, "from -1 to 10 must be from 0"),
        ("domain", 2, {}, "2 clients cannot cover the 3 domains"),
        ("domain", 303, {}, "domain 0 of column 'place' has 100 examples for 101 clients"),
        ("saved", 7, {}, "holds 8 clients and the run has 7; set clients = 8"),
    ],
)
def test_impossible_requests_are_named_on_one_line(
    draw: Draw, scheme: str, clients: int, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        draw(scheme, clients=clients, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("a.csv", "x,y\n1,2"), ("a.txt", "1 2\n3"), ("a.npy", "no array")])
def test_a_matrix_file_that_cannot_be_read_is_named(draw: Draw, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} is not a matrix of numbers"):
        draw("matrix", matrix=None, path=str(tmp_path / name))


def test_files_that_are_not_there_are_an_os_error(draw: Draw, tmp_path: Path) -> None:
    for options in ({"scheme": "saved"}, {"scheme": "matrix", "matrix": None}):
        with pytest.raises(OSError, match=r"none\.npy"):
            draw(path=str(tmp_path / "none.npy"), **options)


def test_a_client_that_is_not_there_is_an_error(draw: Draw) -> None:
    with pytest.raises(IndexError, match="client 8 of 8"):
        draw("iid")[8]


def test_a_hopeless_minimum_is_given_up_early() -> None:
    labels = np.random.default_rng(0).integers(10, size=3000)
    with pytest.raises(ValueError, match=r"none of 20 Dirichlet draws .* at least \d{2,} clients were short"):
        PARTITIONS["dirichlet"](labels, 300, np.random.default_rng(0), alpha=0.1, min_size=9, max_draws=1000)


def test_a_matrix_may_have_columns_of_classes_without_examples(draw: Draw) -> None:
    counts = draw("dirichlet", 3).label_counts(LABELS, 10)
    wider = np.concatenate([counts, np.ones((CLIENTS, 2))], axis=1).tolist()
    assert np.array_equal(draw("matrix", matrix=wider).label_counts(LABELS, 10), counts)


def test_an_endless_concentration_gives_the_pooled_distribution(draw: Draw) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(2), 500))
    shares = draw("client_dirichlet", labels=labels, clients=4, alpha=1e308).label_counts(labels, 2) / 250
    assert np.abs(shares - 0.5).max() < 0.2
