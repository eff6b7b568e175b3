"""What runs have spent, and what they got for it, with records that are known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.costs import Read, least_totals, spent, spent_until, value_within
from fedsim.results.report.comparing.tables import comparison_table
from fedsim.results.report.comparing.units import format_bytes, format_count, read_amount
from fedsim.results.result import Result
from tests.results.report import cases

ACCURACY = [[0.1, 0.3], [0.4, 0.6], [0.3, 0.5]]  # means 0.2, 0.5, 0.4


@pytest.fixture
def run(tiny: Callable[..., Config]) -> Result:
    """A run that has the same on validation data as on test data."""
    return cases.result(tiny(), ACCURACY, validation=ACCURACY, up=[5, 10, 20], examples=([300, 30, 0], [300, 0, 30]))


def test_traffic_and_time_add_up_over_the_rounds(run: Result) -> None:
    assert spent(run, "up").tolist() == [5, 15, 35]
    assert spent(run, "bytes").tolist() == [10, 30, 70]
    assert spent(run, "seconds").tolist() == [2, 4, 6]


def test_a_pass_is_an_example_forward_and_backward_which_costs_twice_as_much(run: Result) -> None:
    assert spent(run, "passes").tolist() == [300, 310, 330]


def test_a_run_without_a_record_of_its_training_has_no_passes(tiny: Callable[..., Config]) -> None:
    old = cases.result(tiny(), ACCURACY, validation=ACCURACY, up=[5, 10, 20])
    assert spent(old, "passes").isna().all()
    assert np.isnan(value_within(old, "passes", 1e9).value)
    assert np.isnan(spent_until(old, "passes", 0.2).value)


# The run has 0.2 for 10 bytes, 0.5 for 30 and 0.4 for 70.
@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        *[(9, (np.nan, False)), (10, (0.2, False)), (11, (0.2 + 0.3 / 20, True)), (29, (0.5 - 0.3 / 20, True))],
        *[(30, (0.5, False)), (50, (0.45, True)), (70, (0.4, False)), (70 * (1 - 1e-12), (0.4, False))],
        (1e9, (0.4, False)),
    ],
)
def test_between_two_rounds_the_value_at_a_budget_is_linear_in_the_cost(
    run: Result, budget: float, expected: tuple[float, bool]
) -> None:
    value, interpolated = value_within(run, "bytes", budget)
    assert (value, interpolated) == (pytest.approx(expected[0], nan_ok=True), expected[1])


def test_a_run_just_above_the_budget_does_not_fall_back_by_a_round(tiny: Callable[..., Config]) -> None:
    # 0.07 % above the budget of 6000 bytes, of which the last round has 2000.
    run = cases.result(tiny(), [[0.5], [0.704], [0.756]], up=[1000, 1000, 1002.1])
    assert value_within(run, "bytes", 6000).value == pytest.approx(0.756, abs=2e-4)


def test_a_value_next_to_a_missing_one_is_not_interpolated(tiny: Callable[..., Config]) -> None:
    lost = [(2, client, "test", "personalised", "accuracy", value) for client, value in ((0, np.nan), (1, 0.5))]
    run = cases.result(tiny(), [[0.1, 0.3], [np.nan, np.nan], [0.3, 0.5]], up=[5, 10, 20], more=lost)
    values = [value_within(run, "bytes", budget).value for budget in (10, 20, 30, 50, 70)]
    assert values == pytest.approx([0.2, np.nan, np.nan, np.nan, 0.4], nan_ok=True)


def test_what_sends_nothing_reaches_its_end_with_any_bytes(tiny: Callable[..., Config]) -> None:
    silent = cases.result(tiny(), ACCURACY, validation=ACCURACY)
    assert value_within(silent, "bytes", 1) == (pytest.approx(0.4), False)
    assert spent_until(silent, "bytes", 0.5, evaluations=1) == Read(0)


@pytest.mark.parametrize(
    ("target", "expected"),
    [(0.1, (10, False)), (0.2, (10, False)), (0.21, (10 + 20 / 30, True)), (0.5, (30, False)), (0.51, (np.nan, False))],
)
def test_between_two_rounds_the_cost_of_a_target_is_linear_in_the_value(
    run: Result, target: float, expected: tuple[float, bool]
) -> None:
    cost, interpolated = spent_until(run, "bytes", target, evaluations=1)
    assert (cost, interpolated) == (pytest.approx(expected[0], nan_ok=True), expected[1])


def test_a_loss_reaches_its_target_from_above(run: Result) -> None:
    assert spent_until(run, "bytes", 0.5, "loss", 1).value == 30  # the means are 0.8, 0.5 and 0.6
    assert spent_until(run, "bytes", 0.65, "loss", 1) == (pytest.approx(20), True)
    assert np.isnan(spent_until(run, "bytes", 0.49, "loss", 1).value)


# Means 0.1, 0.2, 0.9, 0.3, 0.5, 0.7, 0.9 on validation data, one per round, each of 2 bytes and 2 seconds.
@pytest.mark.parametrize(
    ("target", "evaluations", "rounds"),
    [
        (0.9, 1, 3),  # one lucky round
        (0.9, 3, np.nan),
        (0.6, 3, 6 + 0.1 / 0.2),  # the running means are 0.1, 0.15, 0.4, 0.467, 0.567, 0.5, 0.7
        (0.15, 3, 2),
        (0.55, 3, 4 + (0.55 - 7 / 15) / 0.1),
        (0.5, 2, 2 + (0.5 - 0.15) / 0.4),
        (0.5, 100, 6 + (0.5 - 2.7 / 6) / (3.6 / 7 - 2.7 / 6)),
    ],
)
def test_a_target_is_reached_by_the_running_mean_on_validation_data(
    target: float, evaluations: int, rounds: float, tiny: Callable[..., Config]
) -> None:
    validation = [[0.0, 0.2], [0.2, 0.2], [0.8, 1.0], [0.3, 0.3], [0.5, 0.5], [0.7, 0.7], [0.9, 0.9]]
    run = cases.result(tiny(), np.ones((7, 2)), validation=validation, up=[1] * 7)
    found = {what: spent_until(run, what, target, "accuracy", evaluations).value for what in ("rounds", "bytes")}
    assert found == pytest.approx({"rounds": rounds, "bytes": 2 * rounds}, nan_ok=True)
    assert spent_until(run, "seconds", target, evaluations=evaluations).value == pytest.approx(2 * rounds, nan_ok=True)


def test_a_running_mean_has_no_value_where_a_clients_is_missing(tiny: Callable[..., Config]) -> None:
    lost = [(2, 1, "validation", "personalised", "accuracy", np.nan)]
    run = cases.result(
        tiny(), np.ones((5, 2)), validation=[[0.5, 0.5], [0.9, np.nan], [0.9, 0.9], [0.9, 0.9], [0.6, 0.6]], more=lost
    )
    assert spent_until(run, "rounds", 0.8) == Read(5)  # the mean of 0.9, 0.9 and 0.6, after unknown ones
    assert spent_until(run, "rounds", 0.8, evaluations=1) == Read(3)


def test_without_validation_data_no_target_is_reached_by_test_data(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"--target: .* has no values on validation data.*partition.validation"):
        spent_until(cases.result(tiny(), ACCURACY), "bytes", 0.1)


def test_rounds_without_an_evaluation_still_cost(tiny: Callable[..., Config]) -> None:
    accuracy = [[np.nan], [0.5], [np.nan], [0.7]]
    seldom = cases.result(tiny(), accuracy, validation=accuracy, up=[1, 1, 1, 1])
    assert value_within(seldom, "bytes", 7) == (pytest.approx(0.65), True)
    assert spent_until(seldom, "bytes", 0.6) == (pytest.approx(8), False)  # the mean of 0.5 and 0.7
    assert spent_until(seldom, "bytes", 0.6, evaluations=1) == (pytest.approx(6), True)


def test_the_least_total_is_that_of_a_run_of_the_partition_that_spends_something(
    tiny: Callable[..., Config], run: Result
) -> None:
    cheap, silent = cases.result(tiny(), ACCURACY, up=[1, 1, 1]), cases.result(tiny(), ACCURACY)
    other = cases.result(tiny(seed=1), ACCURACY, up=[2, 2, 2])
    assert least_totals([run, silent, cheap, other], "bytes") == {run.partition_name: 6, other.partition_name: 12}
    assert least_totals([silent], "bytes") == {}


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        *[
            ("50MB", "B", 5e7),
            ("1.5 GB", "B", 1.5e9),
            ("20 kB", "B", 2e4),
            ("7 bytes", "B", 7),
            ("900", "B", 900),
            ("5kb", "B", 5e3),
        ],
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
    assert note == "no seconds: timing.jsonl lacks 1 round, lost to a kill or to damage"
    assert not comparison_table(compare([run])).notes
