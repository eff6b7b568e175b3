"""A run ends once validation data say so, and only they."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config import Config, StopConfig
from fedsim.config.content import counted_files
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.rounds import RoundSummary
from fedsim.experiment.sweep.progress import Progress
from fedsim.experiment.sweep.sweep import Run, run_all
from fedsim.results.best_round import best_round, reason_to_stop, validation_means
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from partitions import Partition, Split
from tests.conftest import run_files, run_until

# Patience that these runs lose: their loss on validation data rises from the first round on.
STOP = {"patience": 2, "metric": "loss"}


@pytest.fixture
def misleading(tiny: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """Build runs whose validation data have wrong labels, and test data right ones: training helps the latter only."""
    stream = np.random.default_rng(0)
    targets = stream.integers(0, 2, 90)
    inputs = (stream.normal(size=(90, 4)) + 3 * targets[:, None]).astype(np.float32)
    client, place = np.arange(90) % 3, np.arange(90) // 3 % 5
    targets[place == 0] = 1 - targets[place == 0]
    data = tmp_path / "data.npz"
    np.savez(data, train_inputs=inputs, train_targets=targets, test_inputs=inputs[:9], test_targets=targets[:9])

    def part(chosen: np.ndarray) -> Partition:
        positions = np.flatnonzero(chosen)
        own = Partition.from_owners(client[positions], 3)
        return Partition(positions[own.indices], own.offsets)

    split = tmp_path / "split.npz"
    Split(part(place > 1), part(place == 0), part(place == 1)).save(split, targets)

    def build(**changes: Any) -> Config:
        settings = {
            "rounds": 9,
            "clients": 3,
            "data": {"name": "arrays", "path": str(data)},
            "partition": {"scheme": "saved", "path": str(split)},
            "local": {"lr": 0.2},
            "barriers": {"every": 0},
            "stop": STOP,
        }
        return tiny(**settings | changes)

    return build


def summaries_of(config: Config, folder: RunFolder) -> list[RoundSummary]:
    summaries: list[RoundSummary] = []
    experiment.run(config, folder, summaries.append)
    return summaries


def test_validation_data_stop_a_run_that_still_improves_on_test_data(
    misleading: Callable[..., Config], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    summaries = summaries_of(misleading(), folder)
    rows = read_rows(folder.metrics).query("model == 'personalised' and metric == 'loss'")
    means = rows.groupby(["split", "round"])["value"].mean()
    assert (np.diff(means["test"]) < 0).all()
    assert (np.diff(means["validation"]) > 0).all()
    assert [summary.server_round for summary in summaries] == [1, 2, 3]
    assert [summary.stopped is None for summary in summaries] == [True, True, False]
    expected = f"was not better than the {means['validation'][1]:.4f} of round 1 in 2 evaluations"
    assert expected in str(summaries[-1].stopped)
    assert f"stopped after round 3: {summaries[-1].stopped}" in folder.log.read_text()


def test_a_run_that_improves_on_validation_data_continues_to_its_last_round(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    summaries = summaries_of(tiny(rounds=5, stop=STOP, barriers={"every": 0}), RunFolder(tmp_path / "run"))
    assert [summary.stopped for summary in summaries] == [None] * 5


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_every", [1, 2])
def test_a_stopped_run_that_was_killed_ends_with_the_bytes_of_an_unbroken_one(
    misleading: Callable[..., Config], tmp_path: Path, checkpoint_every: int
) -> None:
    evaluation = {"models": ["personalised", "global", "fine-tuned"]}
    config = misleading(checkpoint_every=checkpoint_every, evaluation=evaluation)
    whole, broken = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "broken")
    summaries_of(config, whole)
    for server_round in (1, 2, 3):
        run_until(config, broken, server_round)
    assert summaries_of(config, broken) == []  # it was killed after the round that it stops at
    assert run_files(broken) == run_files(whole)
    # What is due after the last round is done in the one that turns out to be the last.
    tuned = read_rows(whole.metrics).query("model == 'fine-tuned'")
    assert set(tuned["round"]) == {3}
    assert experiment.rounds_done(whole) == 3


@pytest.mark.slow
def test_a_stopped_run_is_done_and_fedsim_says_why(
    misleading: Callable[..., Config], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = misleading()
    run = Run("tiny run", config, RunFolder(tmp_path / "run"), files=counted_files(config))
    assert run_all([run]) == {}
    assert run.folder.done.exists()
    shown = " ".join(capfd.readouterr().err.split())
    assert "tiny run: stopped after round 3: the clients' mean validation loss was not better than the" in shown
    page = run.folder.report.read_text()
    assert "3 of 9 rounds" in page
    assert "stopped early: the clients&#39; mean validation loss was not better than the" in page


def test_the_bar_of_all_runs_counts_the_rounds_that_are_not_played() -> None:
    with Progress(2, 15) as progress:
        progress.start("first", 10)
        progress.advance("first", RoundSummary(1))
        progress.advance("first", RoundSummary(2, stopped="enough"))
        [total] = [task for task in progress._bars.tasks if task.id == progress._total]
        assert total.completed == 10


def stop_after(values: list[float], patience: int, metric: str = "accuracy", target: float | None = None) -> int | None:
    """Return the evaluation after which a run ends, counted from 1."""
    settings = StopConfig.model_validate({"patience": patience, "metric": metric, "target": target})
    for count in range(1, len(values) + 1):
        if reason_to_stop(dict(enumerate(values[:count], 1)), settings):
            return count
    return None


@pytest.mark.parametrize(
    ("values", "patience", "metric", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1, "accuracy", None),
        ([0.4, 0.3, 0.2, 0.1], 1, "loss", None),
        ([0.4, 0.3, 0.2, 0.1], 2, "accuracy", 3),
        ([0.1, 0.3, 0.2, 0.35, 0.3, 0.3, 0.3], 3, "accuracy", 7),
        ([0.1, 0.3, 0.3, 0.3], 2, "accuracy", 4),  # as good as before is not better
        ([0.5, 0.4, 0.6, 0.5, 0.4], 3, "loss", 5),
        ([0.5, 0.5, 0.5], 0, "accuracy", None),
        ([math.nan, math.nan, math.nan], 3, "loss", 3),
        ([math.nan, 0.5, math.nan, 0.4], 2, "loss", None),
    ],
)
def test_patience_counts_evaluations_since_the_best_one(
    values: list[float], patience: int, metric: str, expected: int | None
) -> None:
    assert stop_after(values, patience, metric) == expected


@pytest.mark.parametrize(
    ("values", "target", "metric", "expected"),
    [
        ([0.1, 0.8, 0.95, 0.7], 0.9, "accuracy", 3),
        ([0.1, 0.9], 0.9, "accuracy", 2),
        ([0.4, 0.3, 0.2], 0.3, "loss", 2),
        ([math.nan, 0.2], 0.9, "accuracy", None),
        ([-2.0, -1.0], -1.5, "own:margin", 2),
    ],
)
def test_a_target_ends_the_run_where_it_is_first_reached(
    values: list[float], target: float, metric: str, expected: int | None
) -> None:
    assert stop_after(values, 0, metric, target) == expected


def test_a_run_with_a_target_is_the_beginning_of_one_without(tiny: Callable[..., Config], tmp_path: Path) -> None:
    settings = {"rounds": 4, "barriers": {"every": 0}, "partition__validation": 0.3}
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    summaries_of(tiny(**settings), whole)
    means = validation_means(read_rows(whole.metrics).to_dict("records"), "loss")
    assert means[1] > means[2] > means[3]
    config = tiny(**settings, stop={"target": means[2], "metric": "loss"})
    assert [bool(summary.stopped) for summary in summaries_of(config, stopped)] == [False, True]
    assert whole.metrics.read_bytes().startswith(stopped.metrics.read_bytes())
    assert f"loss was {means[2]:.4f} in round 2 (stop.target = " in stopped.log.read_text()
    with pytest.raises(
        ConfigError, match=r"stop.target = 90 must be greater than 0 and at most 1, as accuracy is, such as 0.9"
    ):
        experiment.prepare(tiny(**settings, stop={"target": 90.0}))


def test_the_best_round_is_the_first_of_the_best() -> None:
    means = {2: 0.3, 4: 0.7, 6: 0.7, 8: math.nan, 10: 0.1}
    assert best_round(means, "accuracy") == 4
    assert best_round(means, "loss") == 10
    assert best_round({3: math.nan}, "loss") is None


def test_the_mean_is_over_clients_and_over_their_validation_data_alone() -> None:
    rows = [
        {"round": server_round, "model": model, "split": split, "metric": metric, "value": value}
        for server_round, model, split, metric, value in [
            (1, "personalised", "validation", "loss", 1.0),
            (1, "personalised", "validation", "loss", 3.0),
            (1, "personalised", "validation", "accuracy", 0.5),
            (1, "personalised", "test", "loss", 9.0),
            (1, "fine-tuned", "validation", "loss", 9.0),
            (2, "personalised", "validation", "loss", None),
            (2, "personalised", "validation", "loss", 1.0),
        ]
    ]
    means = validation_means(rows, "loss")
    assert means.keys() == {1, 2}
    assert means[1] == 2.0
    assert math.isnan(means[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": -1}, "stop.patience = -1: must be at least 0"),
        ({"patience": 1, "metric": "f1"}, 'stop.metric = "f1": must be'),
        ({"patients": 3}, "unknown key 'stop.patients'; did you mean 'patience'"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    tiny: Callable[..., Config], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(stop=settings)


def test_stopping_without_validation_data_is_found_before_anything_is_written(tiny: Callable[..., Config]) -> None:
    config = tiny(partition={"scheme": "iid", "validation": 0.0}, stop={"patience": 3})
    with pytest.raises(ConfigError, match=r"stop\.patience = 3 needs validation data, but no client has any"):
        experiment.prepare(config)


def test_a_strategy_that_decides_by_validation_data_needs_some(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"'barrier_mix' decides by validation data, but no client has any"):
        experiment.prepare(tiny(strategy={"name": "barrier_mix"}, partition={"scheme": "iid", "validation": 0.0}))
