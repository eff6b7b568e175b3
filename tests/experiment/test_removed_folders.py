"""A run whose folder, or a file in it, is removed or replaced while it runs stops, and writes nothing in its place."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import Config
from fedsim.errors import RunError
from fedsim.experiment import rounds as rounds_module
from fedsim.experiment import run as experiment
from fedsim.experiment.rounds import Rounds
from fedsim.experiment.sweep.failure import Failure
from fedsim.experiment.sweep.sweep import Run, run_one
from fedsim.results import report
from fedsim.results.folder import RunFolder
from tests.experiment.damage import contents, cut, lengthen


def remove(folder: RunFolder) -> None:
    shutil.rmtree(folder.path)


def move(folder: RunFolder) -> None:
    folder.path.rename(folder.path.with_name("elsewhere"))


def replace(folder: RunFolder) -> None:
    """As somebody does who restores a copy."""
    move(folder)
    shutil.copytree(folder.path.with_name("elsewhere"), folder.path)


FOLDERS: dict[str, Callable[[RunFolder], None]] = {"remove": remove, "move": move, "replace": replace}
FILES: dict[str, Callable[[Path], Any]] = {"delete": Path.unlink, "cut": cut, "lengthen": lengthen}


@pytest.mark.parametrize("how", FOLDERS)
def test_a_run_stops_once_its_folder_is_gone(how: str, small: Config, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    left: dict[Path, bytes] = {}

    def change(summary: experiment.RoundSummary) -> None:
        assert summary.server_round == 1
        FOLDERS[how](folder)
        left.update(contents(folder))

    with pytest.raises(RunError, match="was removed, moved or replaced under its run; the run stops; the same command"):
        experiment.run(small, folder, change)
    left = {path: content for path, content in left.items() if path != folder.log}
    assert {path: content for path, content in contents(folder).items() if path != folder.log} == left
    assert folder.path.exists() == (how == "replace")


@pytest.mark.parametrize(
    ("name", "how"), [("metrics", "delete"), ("communication", "cut"), ("timing", "lengthen"), ("seals", "delete")]
)
def test_a_run_stops_once_its_records_are_gone(name: str, how: str, small: Config, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    path: Path = getattr(folder, name)

    def change(summary: experiment.RoundSummary) -> None:
        assert summary.server_round == 1
        FILES[how](path)

    with pytest.raises(RunError, match=rf"{name}.jsonl was removed or changed under the run that writes it"):
        experiment.run(small, folder, change)
    assert path.exists() == (how != "delete")


def test_a_run_stops_once_its_checkpoints_are_gone(small: Config, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunError, match="checkpoints was removed or changed"):
        experiment.run(small, folder, lambda summary: shutil.rmtree(folder.checkpoints))
    assert not folder.checkpoints.exists()


def test_a_folder_that_is_removed_after_the_last_round_is_not_made_again(small: Config, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")

    def change(summary: experiment.RoundSummary) -> None:
        if summary.server_round == small.rounds:
            remove(folder)

    with pytest.raises(RunError, match="under its run"):
        experiment.run(small, folder, change)
    assert not folder.path.exists()


@pytest.mark.parametrize("step", ["_train", "_evaluate"])
def test_a_folder_that_is_removed_within_a_round_is_not_made_again(
    step: str, small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, done = RunFolder(tmp_path / "run"), getattr(Rounds, step)

    def removed(rounds: Rounds, server_round: int, *arguments: Any, **options: Any) -> Any:
        if server_round == 2:
            remove(folder)
        return done(rounds, server_round, *arguments, **options)

    monkeypatch.setattr(rounds_module.Rounds, step, removed)
    with pytest.raises(RunError, match="under its run"):
        experiment.run(small, folder, lambda summary: None)
    assert not folder.path.exists()


def test_a_folder_that_is_removed_before_its_run_is_done_is_not_made_again(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    monkeypatch.setattr(report, "write_run", lambda result, out: remove(folder))
    failure = run_one(Run("run", small, folder), lambda event: None)
    assert isinstance(failure, Failure)
    assert "before its run was done" in failure.message
    assert not failure.wrong_config
    assert not folder.path.exists()
