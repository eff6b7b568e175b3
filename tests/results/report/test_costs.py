"""What runs have spent, and what they got for it, with records that are known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedsim.config import Config
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.costs import least_total, spent, spent_until, value_within
from fedsim.results.report.comparing.tables import comparison_table
from fedsim.results.report.comparing.units import format_bytes, format_count, read_amount
from fedsim.results.result import Result
from tests.results.report import cases

ACCURACY = [[0.1, 0.3], [0.4, 0.6], [0.3, 0.5]]  # means 0.2, 0.5, 0.4


@pytest.fixture
def run(tiny: Callable[..., Config]) -> Result:
    return cases.result(tiny(), ACCURACY, up=[5, 10, 20], examples=([300, 30, 0], [300, 0, 30]))


def test_traffic_and_time_add_up_over_the_rounds(run: Result) -> None:
    assert spent(run, "up").tolist() == [5, 15, 35]
    assert spent(run, "bytes").tolist() == [10, 30, 70]
    assert spent(run, "seconds").tolist() == [2, 4, 6]


def test_a_pass_is_an_example_forward_and_backward_which_costs_twice_as_much(run: Result) -> None:
    assert spent(run, "passes").tolist() == [300, 310, 330]


def test_a_run_without_a_record_of_its_training_has_no_passes(tiny: Callable[..., Config]) -> None:
    old = cases.result(tiny(), ACCURACY, up=[5, 10, 20])
    assert spent(old, "passes").isna().all()
    assert np.isnan(value_within(old, "passes", 1e9))
    assert np.isnan(spent_until(old, "passes", 0.2))


@pytest.mark.parametrize(
    ("budget", "expected"), [(9, np.nan), (10, 0.2), (29, 0.2), (30, 0.5), (69, 0.5), (70, 0.4), (1e9, 0.4)]
)
def test_a_budget_gives_the_last_round_that_it_pays_for(run: Result, budget: float, expected: float) -> None:
    assert value_within(run, "bytes", budget) == pytest.approx(expected, nan_ok=True)


def test_what_sends_nothing_reaches_its_end_with_any_bytes(tiny: Callable[..., Config]) -> None:
    silent = cases.result(tiny(), ACCURACY)
    assert value_within(silent, "bytes", 1) == pytest.approx(0.4)
    assert spent_until(silent, "bytes", 0.5) == 0


@pytest.mark.parametrize(("target", "expected"), [(0.2, 10), (0.21, 30), (0.45, 30), (0.51, np.nan)])
def test_a_target_is_reached_in_the_first_round_that_is_as_good(run: Result, target: float, expected: float) -> None:
    assert spent_until(run, "bytes", target) == pytest.approx(expected, nan_ok=True)


def test_a_loss_reaches_its_target_from_above(run: Result) -> None:
    assert spent_until(run, "bytes", 0.5, "loss") == 30  # the means are 0.8, 0.5 and 0.6
    assert np.isnan(spent_until(run, "bytes", 0.49, "loss"))


def test_rounds_without_an_evaluation_still_cost(tiny: Callable[..., Config]) -> None:
    seldom = cases.result(tiny(), [[np.nan], [0.5], [np.nan], [0.7]], up=[1, 1, 1, 1])
    assert value_within(seldom, "bytes", 7) == 0.5
    assert spent_until(seldom, "bytes", 0.6) == 8


def test_the_least_total_is_that_of_a_run_that_spends_something(tiny: Callable[..., Config], run: Result) -> None:
    cheap, silent = cases.result(tiny(), ACCURACY, up=[1, 1, 1]), cases.result(tiny(), ACCURACY)
    assert least_total([run, silent, cheap], "bytes") == 6
    assert least_total([silent], "bytes") is None


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        *[("50MB", "B", 5e7), ("1.5 GB", "B", 1.5e9), ("20 kB", "B", 2e4), ("7 bytes", "B", 7), ("900", "B", 900)],
        *[("1M", "", 1e6), ("2.5k", "", 2500), ("1e5", "", 1e5)],
    ],
)
def test_amounts_are_read(text: str, unit: str, amount: float) -> None:
    assert read_amount(text, unit) == amount


@pytest.mark.parametrize("text", ["", "MB", "-3", "0", "nan", "inf", "3 apples"])
def test_what_is_no_amount_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_amount(text, "B")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999 bytes"), (1000, "1 kB"), (999_999, "1 MB"), (4_740_000, "4.74 MB"), (5.2e9, "5.2 GB")],
)
def test_bytes_are_written_in_the_unit_that_suits_them(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_counts_are_written_in_the_unit_that_suits_them() -> None:
    written = [format_count(count) for count in (0, 7, 6.6667, 999, 20_193.3, 1.5e6)]
    assert written == ["0", "7", "6.7", "999", "20.2 k", "1.5 M"]


def test_seconds_are_not_known_from_a_round_on_whose_timing_a_kill_prevented(run: Result) -> None:
    known = replace(run, timing=run.timing[run.timing["round"] != 2])
    assert spent(known, "seconds").fillna(-1).tolist() == [2, -1, -1]


def test_a_comparison_says_that_seconds_were_lost(run: Result) -> None:
    cut = replace(run, timing=run.timing[run.timing["round"] != 2])
    [note] = comparison_table(compare([cut])).notes
    assert note == "no seconds, as timing.jsonl lacks those of 1 round, which a kill or damage has lost"
    assert not comparison_table(compare([run])).notes
