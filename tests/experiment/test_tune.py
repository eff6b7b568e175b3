"""``[tune]``: each combination of a sweep gets the values that are best on its own validation data, and no others."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import tomli_w

from fedsim.config import Config, read_toml
from fedsim.config.naming import run_name
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.experiment.tuning.grid import Tuning, describe_tuning, tunings_of
from fedsim.experiment.tuning.tune import Score, best_of, notes_of, score_of
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.report.comparing.question import Question
from fedsim.results.tuning import edges_of
from tests.conftest import TINY, run_files
from tests.results.report import cases

pytestmark = pytest.mark.usefixtures("plain_pages")

Fedsim = Callable[..., tuple[int, str, str]]
STRATEGIES = [{"name": "full"}, {"name": "local"}]
GRID = [0.3, 0.01]


def settings(**tables: Any) -> dict[str, Any]:
    return TINY | {"barriers": {"every": 0}, "rounds": 2} | tables


def tunings(**tables: Any) -> list[Tuning]:
    return tunings_of(Config.parse(settings(**tables), "study"), "study")


@pytest.fixture
def fedsim(command: Fedsim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fedsim:
    """Run an experiment of these settings in an empty folder; return the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **tables: Any) -> tuple[int, str, str]:
        (tmp_path / "study.toml").write_text(tomli_w.dumps(settings(**tables)))
        return command("run", "study.toml", "--jobs", "1", *arguments)

    return run


def last_validation(folder: Path) -> tuple[float, int]:
    """Return the clients' mean validation accuracy of the personalised models in the last round, and that round."""
    rows = read_rows(folder / "metrics.jsonl")
    own = rows.query("model == 'personalised' and split == 'validation' and metric == 'accuracy'")
    last = own["round"].max()
    return float(own[own["round"] == last]["value"].mean()), int(last)


@pytest.mark.slow
def test_each_strategy_is_played_with_the_value_that_is_best_on_its_validation_data(
    fedsim: Fedsim, tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    tables = {"sweep": {"strategy": STRATEGIES, "seed": [1, 0]}, "tune": {"local.lr": GRID}}
    code, out, err = fedsim(**tables)
    assert code == 0
    study = tmp_path / "runs" / "study"
    choices = json.loads((study / "tuning.json").read_text())["choices"]
    assert [choice["runs"] for choice in choices] == ["FedAvg", "local"]
    for strategy, choice in zip(STRATEGIES, choices, strict=True):
        judged = {}
        for lr, score in zip(GRID, choice["scores"], strict=True):
            # The names are those of runs without [tune]; the seed is the sweep's first.
            folder = (
                study
                / "tuning"
                / run_name(tiny(rounds=2, barriers={"every": 0}, strategy=strategy, local__lr=lr, seed=1))
            )
            judged[lr] = last_validation(folder)
            assert score == {
                "values": {"local.lr": lr},
                "validation_accuracy": pytest.approx(judged[lr][0]),
                "round": judged[lr][1],
                "run": f"tuning/{folder.name}",
            }
        best = max(GRID, key=lambda lr: judged[lr][0])
        assert (choice["chosen"], choice["seed"], choice["rounds"]) == ({"local.lr": best}, 1, 2)
        assert f"tuning {choice['runs']}: local.lr = {best}, validation accuracy {judged[best][0]:.1%}\n" in err
        for seed in (0, 1):
            config = tiny(rounds=2, barriers={"every": 0}, strategy=strategy, local__lr=best, seed=seed)
            assert read_toml(study / run_name(config) / "config.toml")["local"]["lr"] == best
        played = RunFolder(study / run_name(config))
        copied_from = RunFolder(study / "tuning" / run_name(config))
        assert run_files(played) == run_files(copied_from)
        assert played.env.read_bytes() == copied_from.env.read_bytes()  # not played again
    assert len(list(study.glob("*/DONE"))) == 4
    rows = re.findall(r"^ (FedAvg|local) +(\d) ", out, re.MULTILINE)
    assert rows == [("FedAvg", "2"), ("local", "2")]

    before = {path: path.stat().st_mtime_ns for path in study.rglob("*.jsonl")}
    record = (study / "tuning.json").read_bytes()
    code, again, _ = fedsim(**tables)
    assert (code, again) == (0, out)
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*.jsonl")} == before
    assert (study / "tuning.json").read_bytes() == record


@pytest.mark.slow
def test_a_run_that_was_killed_while_it_was_judged_continues_and_gives_the_same_choice(
    fedsim: Fedsim, tmp_path: Path
) -> None:
    tables = {"tune": {"local.lr": [0.3]}}
    [tuning] = tunings(**tables)
    stopped = tuning.candidates[0].config
    folder = RunFolder(tmp_path / "runs/study/tuning" / run_name(stopped))
    experiment.run(stopped, folder, lambda summary: None, until=1)
    code, _, err = fedsim(**tables)
    assert code == 0
    assert "local.lr = 0.3: resuming after round 1" in err
    code, _, _ = fedsim("--out", "unbroken", **tables)
    assert code == 0
    # A copied run is a whole one: one that is gone is copied again, not played.
    paths = [path / "study" for path in (tmp_path / "runs", tmp_path / "unbroken")]
    assert (paths[0] / "tuning.json").read_bytes() == (paths[1] / "tuning.json").read_bytes()
    one, other = ([run_files(RunFolder(done.parent)) for done in sorted(path.rglob("DONE"))] for path in paths)
    assert one == other


@pytest.mark.slow
def test_a_value_with_which_the_models_diverge_is_not_chosen(fedsim: Fedsim, tmp_path: Path) -> None:
    record = tmp_path / "runs/study/tuning.json"
    record.parent.mkdir(parents=True)
    before = {"key": "12345678", "runs": "of another sweep", "chosen": {"local.lr": 0.7}, "scores": []}
    record.write_text(json.dumps({"choices": [before]}))
    code, _, err = fedsim(tune={"local.lr": [1e30, 0.1]})
    assert code == 0
    assert "tuning FedAvg: the models diverge with local.lr = 1e+30\n" in err
    other, choice = json.loads(record.read_text())["choices"]
    assert other == before
    assert choice["chosen"] == {"local.lr": 0.1}
    assert [score["validation_accuracy"] is None for score in choice["scores"]] == [True, False]


def test_if_the_models_diverge_with_every_value_nothing_is_played(fedsim: Fedsim, tmp_path: Path) -> None:
    code, out, err = fedsim(tune={"local.lr": [1e30, 1e31]})
    assert (code, out) == (1, "")
    assert err.endswith(
        "fedsim: error: the models diverge with all values of [tune]; try others, such as smaller learning rates\n"
    )
    assert not list(tmp_path.glob("runs/study/*/DONE"))


RAISES = """
from fedsim.strategy import Strategy

class Raises(Strategy):
    def aggregate(self, server_round, updates):
        raise TypeError("odd thing")
"""


@pytest.mark.slow
def test_a_strategy_whose_runs_fail_leaves_the_others_to_be_tuned(fedsim: Fedsim, tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text(RAISES)
    sweep = {"strategy": [{"name": "raises:Raises"}, {"name": "local"}]}
    code, out, err = fedsim(sweep=sweep, tune={"local.lr": [0.1]})
    assert code == 1
    assert [line.split()[0] for line in out.splitlines() if line[:6] in (" local", " raise")] == ["local"]
    assert "tuning raises:Raises, local.lr = 0.1: TypeError: odd thing (raises.py, line " in err
    choices = json.loads((tmp_path / "runs/study/tuning.json").read_text())["choices"]
    assert [choice["runs"] for choice in choices] == ["local"]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.3, 0.2], 1),
        ([0.3, 0.3, 0.1], 0),  # both at an edge: the first
        ([math.nan, 0.0, math.nan], 1),
        ([math.nan] * 3, None),
        ([0.3, 0.3, 0.3], 2),  # which is the middle of 0.01, 0.03, 0.1
        ([0.1 + 0.2, 0.1, 0.3], 2),  # equal but for rounding
    ],
)
def test_the_best_value_is_chosen_and_of_equal_ones_that_in_the_middle(scores: list[float], best: int | None) -> None:
    values = [{"local.lr": lr} for lr in (0.01, 0.1, 0.03)]
    assert best_of([Score(score, 1) for score in scores], values) == best


def test_of_equal_scores_one_with_fewer_updates_left_out_comes_before_the_middle() -> None:
    values = [{"local.lr": lr, "local.nesterov": True} for lr in (0.1, 0.2, 0.3)]
    scores = [Score(0.5, 1, left_out=count) for count in (0, 1, 0)]
    assert best_of(scores, values) == 0
    assert best_of([replace(score, metric="loss") for score in [*scores[:2], Score(0.4, 1, left_out=9)]], values) == 2


def test_of_a_product_the_combination_is_chosen_that_is_in_the_middle_of_most_settings() -> None:
    values = [{"local.lr": lr, "local.momentum": each} for lr in (0.1, 0.2, 0.4) for each in (0.0, 0.5, 0.9)]
    assert best_of([Score(0.5, 1)] * 9, values) == 4
    assert best_of([Score(0.5, 1) if place in (0, 5, 8) else Score(0.4, 1) for place in range(9)], values) == 5


@pytest.mark.parametrize(
    ("at", "metric", "value", "server_round"),
    [("last", "accuracy", 0.4, 3), ("best", "accuracy", 0.6, 2), ("last", "loss", 0.6, 3), ("best", "loss", 0.4, 2)],
)
def test_a_score_is_that_of_the_round_which_a_comparison_shows(
    at: Literal["last", "best"], metric: str, value: float, server_round: int, tiny: Callable[..., Config]
) -> None:
    # On test data the first round is the best.
    run = cases.result(tiny(rounds=3), [[0.9], [0.1], [0.1]], validation=[[0.3], [0.6], [0.4]])
    [tuning] = tunings(tune={"local.lr": [0.1], "at": at, "metric": metric})
    score = score_of(run, tuning)
    assert (score.value, score.round) == (pytest.approx(value), server_round)
    assert score.round == Question(metric=metric, at=at).round_of(run)


@pytest.mark.parametrize(
    ("scores", "edge"),
    [
        ((0.5, 0.4, 0.3), "local.lr = 0.1 of 0.1, 0.2, 0.3 is at the edge of its grid;"),
        ((0.4, 0.5, 0.3), "local.lr = 0.3 of 0.1, 0.2, 0.3 is at the edge"),
        ((0.3, 0.4, 0.5), ""),
        ((0.5, 0.5, 0.3), ""),  # nothing says in which direction a wider grid would be better
        ((0.5, 0.3, math.nan), "local.lr = 0.1"),
    ],
)
def test_a_choice_at_the_edge_of_its_grid_is_said_unless_another_value_did_as_well(
    scores: tuple[float, ...], edge: str
) -> None:
    [tuning] = tunings(tune={"local.lr": [0.1, 0.3, 0.2], "local.nesterov": [False]})
    every = [Score(score, 1) for score in scores]
    best = best_of(every, [candidate.values for candidate in tuning.candidates])
    _, *edges = [note for note in notes_of(tuning, every, best) if "diverge" not in note]
    assert len(edges) == bool(edge)
    assert edge in " ".join(edges)


def test_the_light_of_a_comparison_counts_the_edges_that_the_run_has_told() -> None:
    grid = (0.1, 0.2, 0.4)

    def choice(chosen: float, *scores: float | None) -> dict[str, Any]:
        tried = [{"values": {"local.lr": lr}, "validation_loss": each} for lr, each in zip(grid, scores, strict=True)]
        return {"chosen": {"local.lr": chosen}, "scores": tried}

    assert edges_of(choice(0.4, 0.9, 0.8, 0.7)) == ["local.lr = 0.4 of 0.1, 0.2, 0.4"]
    assert edges_of(choice(0.1, 0.5, None, None)) == ["local.lr = 0.1 of 0.1, 0.2, 0.4"]
    assert edges_of(choice(0.4, 0.9, 0.7, 0.7)) == edges_of(choice(0.2, 0.9, 0.8, 0.9)) == []


def test_several_settings_make_a_product_for_each_combination_of_the_sweep_but_its_seeds() -> None:
    found = tunings(
        sweep={"seed": [4, 5], "strategy": STRATEGIES, "partition.alpha": [0.1, 1.0]},
        tune={"local.lr": [0.1, 0.2], "local.momentum": [0.0, 0.9]},
    )
    assert [tuning.label for tuning in found] == [
        f"{name}, partition.alpha = {alpha}" for name in ("FedAvg", "local") for alpha in (0.1, 1.0)
    ]
    for tuning in found:
        assert [config.seed for config in tuning.configs] == [4, 5]
        got = [(each.config.local.lr, each.config.local.momentum, each.config.seed) for each in tuning.candidates]
        assert got == [(0.1, 0.0, 4), (0.1, 0.9, 4), (0.2, 0.0, 4), (0.2, 0.9, 4)]


def test_runs_that_are_played_to_choose_only_are_not_analysed() -> None:
    tables = {"barriers": {"every": 2}, "sweep": {"seed": [0, 1]}}
    for tune_, rounds, seed, every in (
        ({}, 2, 0, 2),
        ({"rounds": 2, "seed": 1}, 2, 1, 2),
        ({"rounds": 1}, 1, 0, 0),
        ({"seed": 7}, 2, 7, 0),
    ):
        [tuning] = tunings(**tables, tune={"local.lr": [0.1], **tune_})
        config = tuning.candidates[0].config
        assert (config.rounds, config.seed, config.barriers.every) == (rounds, seed, every)
        assert all(each.rounds == 2 and each.barriers.every == 2 for each in tuning.chosen({}, "study"))


def test_a_table_is_tuned_together_with_one_of_its_settings() -> None:
    [tuning] = tunings(tune={"local.lr": [0.3], "local": [{"lr": 0.1, "epochs": 3}]})
    assert (tuning.candidates[0].config.local.lr, tuning.candidates[0].config.local.epochs) == (0.3, 3)


def test_models_that_diverge_with_one_swept_table_leave_the_other_to_be_tuned(fedsim: Fedsim, tmp_path: Path) -> None:
    sweep = {"local": [{"weight_decay": 1e30}, {"weight_decay": 0.0}]}
    code, _, err = fedsim(sweep=sweep, tune={"local.lr": [0.1]}, rounds=1)
    assert code == 1
    choices = json.loads((tmp_path / "runs/study/tuning.json").read_text())["choices"]
    assert [choice["chosen"] for choice in choices] == [None, {"local.lr": 0.1}]
    assert "tuning FedAvg, local.weight_decay = 1e+30: the models diverge with local.lr = 0.1\n" in err
    assert "tuning FedAvg, local.weight_decay = 0.0: local.lr = 0.1, validation accuracy" in err


def test_a_setting_in_a_swept_table_is_not_tuned_too() -> None:
    with pytest.raises(ConfigError, match=r"'local.lr': 'local.lr' is in \[sweep\] too; remove it from one of them"):
        tunings(sweep={"local": [{"lr": 0.1, "epochs": 1}, {"lr": 0.2}]}, tune={"local.lr": [0.1, 0.3]})


def test_candidates_keep_their_values_when_a_table_is_tuned_with_one_of_its_settings() -> None:
    grid = {"local.lr": [0.01, 0.3], "local": [{"epochs": 1}, {"epochs": 2}]}
    [tuning] = tunings(tune=grid)
    values = [{"local.lr": lr, "local": {"epochs": epochs}} for lr in (0.01, 0.3) for epochs in (1, 2)]
    assert [candidate.values for candidate in tuning.candidates] == values
    configs = [candidate.config.local for candidate in tuning.candidates]
    assert [(local.lr, local.epochs) for local in configs] == [(0.01, 1), (0.01, 2), (0.3, 1), (0.3, 2)]


def test_a_dry_run_says_the_grid_and_plays_nothing(fedsim: Fedsim, tmp_path: Path) -> None:
    tables = {"sweep": {"strategy": STRATEGIES, "seed": [3, 4]}, "tune": {"local.lr": GRID, "rounds": 1}}
    code, out, _ = fedsim("--dry-run", **tables)
    assert code == 0
    assert "4 runs of 1 rounds with seed 3 before the others, 2 for each combination" in out
    assert "".join(f"local.lr = {lr}\n" for lr in GRID) in out
    assert describe_tuning(tunings(**tables)) in out
    assert out.startswith("study.toml: 4 runs of 2 rounds, in runs/study\n")
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def test_what_the_command_line_sets_is_not_tuned(fedsim: Fedsim) -> None:
    code, out, _ = fedsim("--dry-run", "--set", "local.lr=0.25", tune={"local.lr": [0.1], "rounds": 1})
    assert code == 0
    assert "\nlocal.lr = 0.25\n" in out
    assert "tuning" not in out


def test_two_combinations_that_differ_in_nothing_but_the_seed_are_told_apart_by_no_key() -> None:
    keys = [tunings(tune={"local.lr": [0.1]}, **own)[0].key for own in ({}, {"seed": 5}, {"clients": 3})]
    assert keys[0] == keys[1] != keys[2]


def test_what_is_tuned_neither_names_a_run_nor_is_written_into_it(tiny: Callable[..., Config]) -> None:
    config = tiny(tune={"local.lr": [0.1], "rounds": 3})
    assert run_name(config) == run_name(tiny())
    assert config.to_toml() == tiny().to_toml()
