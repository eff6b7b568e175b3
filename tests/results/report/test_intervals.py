"""Intervals over seeds and measures over clients, against SciPy and closed forms."""

import numpy as np
import pytest
from scipy import stats

from fedsim.results.report.comparing.statistics import holm, interval, jain, paired_p, worst_mean


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_the_interval_is_students(n: int) -> None:
    values = np.random.default_rng(n).normal(0.7, 0.1, n)
    expected = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    got = interval(values)
    assert (got.mean - got.half_width, got.mean + got.half_width) == pytest.approx(expected, abs=1e-14)


def test_one_seed_has_no_interval_and_none_has_no_mean() -> None:
    assert interval([0.25]).mean == 0.25
    assert not interval([0.25]).has_width
    assert not interval([]).is_known
    assert not interval([0.5, float("nan"), 0.5]).is_known


def test_nineteen_of_twenty_intervals_hold_the_mean() -> None:
    rng = np.random.default_rng(0)
    samples = [interval(rng.normal(size=3)) for _ in range(2000)]
    covered = np.mean([abs(each.mean) <= each.half_width for each in samples])
    assert abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize("n", [1, 4, 25])
def test_jains_index_is_one_for_equal_clients_and_one_nth_if_one_has_all(n: int) -> None:
    assert jain(np.full(n, 0.3)) == pytest.approx(1)
    assert jain(np.eye(n)[0]) == pytest.approx(1 / n)


def test_jains_index_is_the_share_of_clients_that_have_equally_much_and_knows_no_unit() -> None:
    values = np.array([0.2, 0.2, 0.2, 0.0, 0.0])
    assert jain(values) == pytest.approx(3 / 5)
    assert jain(100 * values) == pytest.approx(3 / 5)
    assert np.isnan(jain([0.0, 0.0]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.9, 0.1, 0.5], 0.1),
        (np.arange(20) / 20, 0.025),
        (np.arange(11) / 11, 1 / 22),
        (np.arange(21) / 21, 1 / 21),
        ([0.7], 0.7),
    ],
)
def test_the_worst_tenth_is_rounded_up(values: list[float], expected: float) -> None:
    assert worst_mean(values) == pytest.approx(expected)


def test_the_worst_loss_is_the_largest() -> None:
    assert worst_mean([1.0, 5.0, 2.0], higher_is_better=False) == 5.0


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_p_value_is_that_of_scipys_paired_t_test(n: int) -> None:
    first, second = np.random.default_rng(n).normal(size=(2, n))
    expected = stats.ttest_rel(first, second).pvalue
    assert paired_p(first - second) == pytest.approx(expected, abs=1e-14)
    found = interval(first - second)
    assert (abs(found.mean) > found.half_width) == (expected < 0.05)


def test_equal_runs_are_not_told_apart_and_runs_with_one_difference_are() -> None:
    assert paired_p([0.0, 0.0, 0.0]) == 1
    assert paired_p([1e-17, 1.1e-17]) == 1  # what another order of a sum makes
    assert paired_p([0.25, 0.25]) == 0
    assert np.isnan(paired_p([0.25]))


# By hand: the smallest times the number of tests, the next times one less, none smaller than the one before, at most 1.
# R's p.adjust(p, "holm") gives the same.
@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.6, 0.001], [1, 1, 0.003]),
        ([0.04], [0.04]),
        ([0.04, np.nan, 0.02], [0.04, np.nan, 0.04]),
        ([], []),
    ],
)
def test_holms_correction_by_hand(p: list[float], expected: list[float]) -> None:
    assert holm(p) == pytest.approx(expected, nan_ok=True)


def test_holms_correction_rejects_what_his_procedure_rejects() -> None:
    for p in np.random.default_rng(0).beta(0.3, 2, size=(50, 6)):
        # As in the paper: from the smallest on, until one is not below the level divided by how many are left.
        rejected = set[int]()
        for left, test in zip(range(len(p), 0, -1), np.argsort(p), strict=True):
            if p[test] >= 0.05 / left:
                break
            rejected.add(int(test))
        assert set(map(int, np.flatnonzero(holm(p) < 0.05))) == rejected
