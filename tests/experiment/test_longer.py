"""A run with more rounds than a finished one begins with its rounds, and ends as if it had run them all at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import Config
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.run import complete as complete_folder
from fedsim.experiment.sweep import longer
from fedsim.experiment.sweep.sweep import Run, name_runs, run_all
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.reading import find_runs
from fedsim.strategy import LocalPlan, Phase
from strategies.layer_cycle import LayerCycle
from tests.conftest import run_files

LESS, MORE = 3, 4
Play = Callable[[Config], RunFolder]


@pytest.fixture
def together(tmp_path: Path) -> Play:
    """Run an experiment's runs in one folder, without pages."""
    return lambda config: complete(config, tmp_path / "together")


def complete(config: Config, out: Path) -> RunFolder:
    """Run a run as an experiment of its own does."""
    [run] = name_runs([config], out)
    assert run_all([Run(run.name, run.config, run.folder, with_page=False)]) == {}
    assert run.folder.done.exists()
    return run.folder


SETTINGS: dict[str, Any] = {
    "data": {"name": "digits", "train_examples": 120, "test_examples": 30},
    "participation": 0.5,
    "local__lr": 1.0,
    "barriers": {"every": 0},
    "strategy": {"name": "layer_cycle"},
}
TUNED = {"models": ["personalised", "global", "trained", "fine-tuned"], "fine_tune_epochs": 1}
CASES: dict[str, dict[str, Any]] = {
    "barriers now and then": {"barriers": {"every": 2, "examples": 30}},
    "barriers that decide": {"strategy": {"name": "barrier_gated"}},
    "an evaluation of the last round only": {"evaluate_every": 2, "checkpoints": {"keep": "last"}},
    "fine-tuning in the last round": {"evaluation": TUNED},
    "fine-tuning and evaluation in the last round": {
        "evaluation": TUNED | {"fine_tune_every": 4},
        "evaluate_every": 2,
        "checkpoints": {"keep": "last"},
    },
    "all models": {"checkpoints": {"keep": "all"}},
    "clients with sets of their own": {"strategy": {"name": "ditto"}, "unseen": 0.2, "clients": 5},
    "a checkpoint now and then": {"checkpoint_every": 2, "strategy": {"name": "ditto"}},
    "a checkpoint now and then, all kept": {"checkpoint_every": 2, "checkpoints": {"keep": "all"}},
    "a schedule whatever is still to come": {"local__schedule": "step", "local__step_size": 3, "local__warmup": 2},
    "a stop before the end": {"stop": {"patience": 1}},
    "a stop that fine-tunes": {"stop": {"patience": 1}, "evaluation": TUNED},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_begins_with_the_rounds_of_a_shorter_one_has_the_bytes_of_one_that_ran_at_once(
    case: str, tiny: Callable[..., Config], together: Play, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = SETTINGS | CASES[case]
    shorter = together(tiny(**settings, rounds=LESS))
    before = run_files(shorter)
    last = Checkpoints(shorter.checkpoints).newest()
    capfd.readouterr()
    found = together(tiny(**settings, rounds=MORE))
    shown = " ".join(capfd.readouterr().err.split())
    assert f"continues {shorter.path} after its {last} rounds" in shown
    assert run_files(found) == run_files(complete(tiny(**settings, rounds=MORE), tmp_path / "at once"))
    assert run_files(shorter) == before
    assert found.read_env()["continues"] == {"run": shorter.path.name, "round": last}
    assert len(found.read_env()["started"]) == 1
    assert len(json.loads(found.participants.read_text())) == MORE
    assert found.read_config().rounds == MORE
    assert not list(found.path.parent.glob(".*"))


def change_env(folder: RunFolder, **values: Any) -> None:
    folder.write_env(folder.read_env() | values)
    folder.done.unlink()
    complete_folder(folder)


OBSTACLES: dict[str, tuple[dict[str, Any], Callable[[RunFolder], Any], str]] = {
    "another version": ({}, lambda folder: change_env(folder, fedsim="0.0.9"), "it was run with fedsim 0.0.9 (now"),
    "another device": ({}, lambda folder: change_env(folder, device="a GPU"), "device was a GPU and is cpu"),
    "no list of layers": ({}, lambda folder: folder.model.unlink(), "model.json is missing; remove"),
    "other layers": (
        {},
        lambda folder: folder.model.write_text(folder.model.read_text().replace("fc1", "fc0")),
        "model.json differs from what was written; remove",
    ),
    "no records": ({}, lambda folder: folder.timing.unlink(), "timing.jsonl is missing; remove"),
    "another cohort": ({"engine": {"cohort": 2}}, lambda folder: None, "its cohort was 1 and engine.cohort is 2"),
    "all models wanted": ({"checkpoints": {"keep": "all"}}, lambda folder: None, "of its round 1 are not kept"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_a_run_starts_from_round_1_where_a_shorter_one_may_have_other_numbers_or_lacks_models(
    name: str, tiny: Callable[..., Config], together: Play, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, change, reason = OBSTACLES[name]
    shorter = together(tiny(**SETTINGS | IMPROVING | {"checkpoints": {"keep": "last"}}, rounds=LESS))
    change(shorter)
    capfd.readouterr()
    found = together(tiny(**SETTINGS | IMPROVING | {"checkpoints": {"keep": "last"}} | changes, rounds=MORE))
    shown = " ".join(capfd.readouterr().err.split())
    assert f"starts from round 1, not from the {LESS} rounds of {shorter.path}:" in shown
    assert reason in shown
    assert "continues" not in found.read_env()
    assert not shown.count("resuming")
    assert read_rows(found.timing)["round"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_run_whose_schedule_goes_over_all_rounds_starts_from_round_1(
    schedule: str, tiny: Callable[..., Config], together: Play, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = SETTINGS | {"local__schedule": schedule}
    together(tiny(**settings, rounds=1))
    capfd.readouterr()
    found = together(tiny(**settings, rounds=2))
    shown = " ".join(capfd.readouterr().err.split())
    assert f"starts from round 1, not from the 1 rounds of {found.path.parent}" in shown
    assert f"local.schedule = '{schedule}' spans all rounds, and their number differs" in shown
    assert read_rows(found.timing)["round"].tolist() == [1, 2]


# Runs whose last round so far is the best one.
IMPROVING = {"participation": 1.0, "local__lr": 0.2, "strategy": {"name": "full"}}


def test_a_run_whose_best_round_was_evaluated_only_as_the_last_one_is_not_continued_if_the_best_is_to_be_kept(
    tiny: Callable[..., Config], together: Play, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = SETTINGS | IMPROVING | {"evaluate_every": 3}
    shorter = together(tiny(**settings, rounds=5))
    assert Checkpoints(shorter.checkpoints).rounds() == [4, 5]
    found = together(tiny(**settings, rounds=6))
    assert "the models of its round 3 are not kept" in " ".join(capfd.readouterr().err.split())
    assert run_files(found) == run_files(complete(tiny(**settings, rounds=6), tmp_path / "at once"))


def test_only_a_run_that_is_the_same_and_finished_is_continued(
    tiny: Callable[..., Config], together: Play, capfd: pytest.CaptureFixture[str]
) -> None:
    together(tiny(**SETTINGS, rounds=1, seed=1))
    together(tiny(**SETTINGS | {"local__lr": 0.5}, rounds=1))
    together(tiny(**SETTINGS, rounds=4))
    unfinished = together(tiny(**SETTINGS, rounds=2))
    unfinished.done.unlink()
    (unfinished.path.parent / "no run").mkdir()
    (unfinished.path.parent / "no run" / "DONE").touch()
    assert "continues" not in together(tiny(**SETTINGS, rounds=3)).read_env()
    assert "rounds of" not in capfd.readouterr().err


def test_the_longest_of_several_shorter_runs_is_continued(tiny: Callable[..., Config], together: Play) -> None:
    for rounds in (2, 1):
        together(tiny(**SETTINGS, rounds=rounds))
    shorter = together(tiny(**SETTINGS, rounds=3))
    assert together(tiny(**SETTINGS, rounds=4)).read_env()["continues"] == {"run": shorter.path.name, "round": 3}


def test_a_kill_while_a_shorter_run_is_copied_leaves_nothing_of_it(
    tiny: Callable[..., Config], together: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = together(tiny(**SETTINGS, rounds=LESS))
    config = tiny(**SETTINGS, rounds=MORE)
    [run] = name_runs([config], shorter.path.parent)

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("write_folder", "row_files"):
        with monkeypatch.context() as patched:
            patched.setattr(longer, name, kill)
            with pytest.raises(KeyboardInterrupt):
                longer.begin_from_shorter(config, run.folder, {LESS})
        assert not run.folder.path.exists()
        assert find_runs([shorter.path.parent]) == [shorter]
    # After the copy is there and before its first round, the same command goes on.
    assert "continues" in str(longer.begin_from_shorter(config, run.folder, {LESS}))
    assert find_runs([shorter.path.parent]) == [shorter]
    found = together(config)
    assert run_files(found) == run_files(complete(config, tmp_path / "at once"))
    assert read_rows(found.timing)["round"].tolist() == list(range(1, MORE + 1))


def test_a_run_of_a_method_that_no_checkpoint_remembers_starts_from_round_1(
    tiny: Callable[..., Config], together: Play, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(**SETTINGS, rounds=LESS)
    together(config)
    monkeypatch.setattr(longer, "forgotten_by", lambda strategy: f"{strategy.__name__}.aggregate changes self.v")
    found = together(config.model_copy(update={"rounds": MORE}))
    assert "LayerCycle.aggregate changes self.v" in " ".join(capfd.readouterr().err.split())
    assert read_rows(found.timing)["round"].tolist() == [1, 2, 3, 4]


def test_a_run_of_a_method_whose_schedule_spans_all_rounds_starts_from_round_1(
    tiny: Callable[..., Config], together: Play, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_rounds(self: Any, rounds: int) -> None:
        self.rounds = rounds

    def local_plan(self: Any, server_round: int) -> LocalPlan:  # which is asked before the run, too
        return LocalPlan((Phase(lr=1 - server_round / (self.rounds + 1)),))

    monkeypatch.setattr(LayerCycle, "check_rounds", check_rounds)
    monkeypatch.setattr(LayerCycle, "local_plan", local_plan)
    config = tiny(**SETTINGS, rounds=LESS)
    together(config)
    found = together(config.model_copy(update={"rounds": MORE}))
    assert "LayerCycle.check_rounds sets self.rounds, and the num" in " ".join(capfd.readouterr().err.split())
    assert read_rows(found.timing)["round"].tolist() == [1, 2, 3, 4]


def test_a_run_that_continues_another_one_misses_none_of_its_files(
    tiny: Callable[..., Config], together: Play, capfd: pytest.CaptureFixture[str]
) -> None:
    together(tiny(**SETTINGS, rounds=LESS))
    together(tiny(**SETTINGS, rounds=MORE))
    shown = " ".join(capfd.readouterr().err.split())
    assert "continues" in shown
    assert "is missing" not in shown
