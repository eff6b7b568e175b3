"""Which checkpoints stay: the newest two, and those of the best rounds so far, however often a run is killed."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from fedsim.config import Config
from fedsim.config.naming import run_name
from fedsim.experiment import checkpoints as module
from fedsim.experiment import run as experiment
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.rounds import RoundSummary
from fedsim.federation.engines.state_files import StateFiles
from fedsim.results.best_round import best_round, validation_means
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from tests.conftest import run_files, run_until


@pytest.fixture
def uneven(tiny: Callable[..., Config]) -> Callable[..., Config]:
    """Build runs that are best in rounds 2 and 1, by accuracy and by loss, of six; in each, half of the clients train.

    All clients keep layers for themselves.
    """

    def build(**changes: Any) -> Config:
        settings = {
            "rounds": 6,
            "participation": 0.5,
            "local__lr": 1.0,
            "strategy": {"name": "layer_cycle"},
            "barriers": {"every": 0},
        }
        return tiny(**settings | changes)

    return build


def best_until(folder: RunFolder, server_round: int) -> set[int | None]:
    """Return the best rounds by accuracy and by loss of the first rounds of a run."""
    rows = read_rows(folder.metrics).query("round <= @server_round").to_dict("records")
    return {best_round(validation_means(rows, metric), metric) for metric in ("accuracy", "loss")}


def client_files(folder: RunFolder) -> tuple[set[Path], set[Path]]:
    """Return the clients' files on disk, and those that the checkpoints on disk refer to."""
    files = StateFiles(folder.checkpoints / "clients")
    expected = set()
    for path in folder.checkpoints.rglob("clients.safetensors"):
        rounds = load_file(path)["rounds"].numpy()
        expected |= {files.path(int(client), int(rounds[client])) for client in np.flatnonzero(rounds)}
    return set(files.folder.glob("*")), expected


@pytest.mark.parametrize(
    ("settings", "rounds"),
    [
        ({"checkpoints__keep": "last"}, {5, 6}),
        ({}, {1, 2, 5, 6}),
        ({"checkpoint_every": 4}, {4, 6}),
        ({"checkpoint_every": 4, "checkpoints__keep": "best"}, {1, 2, 4, 6}),
        ({"checkpoint_every": 4, "checkpoints__keep": "all"}, {1, 2, 4, 6}),
        ({"checkpoints__keep": "best", "evaluate_every": 3}, {3, 5, 6}),
        ({"checkpoints__keep": "best", "partition__validation": 0.0}, {5, 6}),
    ],
)
def test_the_checkpoints_that_the_config_keeps_are_on_disk_after_each_round(
    uneven: Callable[..., Config], tmp_path: Path, settings: dict[str, Any], rounds: set[int]
) -> None:
    config, folder = uneven(**settings), RunFolder(tmp_path / "run")

    def check(summary: RoundSummary) -> None:
        found = set(Checkpoints(folder.checkpoints).rounds())
        if config.keeps_best and summary.server_round % config.evaluate_every == 0:
            assert best_until(folder, summary.server_round) - {None} <= found
        on_disk, expected = client_files(folder)
        assert on_disk == expected
        # Only the newest is where it always was: a pattern such as checkpoints/round-* matches one.
        assert len(list(folder.checkpoints.glob("round-*"))) == (1 if found else 0)

    experiment.run(config, folder, check)
    assert set(Checkpoints(folder.checkpoints).rounds()) == rounds


def test_what_is_kept_of_the_models_renames_no_run(uneven: Callable[..., Config]) -> None:
    assert run_name(uneven(checkpoints__keep="all")) == run_name(uneven())


class Killed(BaseException):
    """The process ends here."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the process at a step of those that change files; a folder that it was removing has lost one of its files."""
    left = step

    def stepped(call: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if call is rmtree:
                    next(path for path in arguments[0].rglob("*") if path.is_file()).unlink()
                raise Killed
            return call(*arguments, **options)

        return replaced

    rmtree, removing = shutil.rmtree, stepped(shutil.rmtree)
    monkeypatch.setattr(Path, "replace", stepped(Path.replace))
    monkeypatch.setattr(StateFiles, "remove", stepped(StateFiles.remove))
    monkeypatch.setattr(
        module.shutil, "rmtree", lambda path, **options: (removing if path.exists() else rmtree)(path, **options)
    )


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_writes_checkpoints_ends_with_the_bytes_of_an_unbroken_one(
    uneven: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    config = uneven(rounds=4)
    whole, broken = play(config, "whole"), RunFolder(tmp_path / "broken")
    reached = []
    for step in range(8, 32, 2):  # before that a run writes its settings; in each it gets a little further
        with pytest.MonkeyPatch.context() as patched:
            kill_at(step, patched)
            with suppress(Killed):
                experiment.run(config, broken, lambda summary: None)
        reached.append(experiment.rounds_done(broken))
    assert set(reached) == {0, 1, 2, 3, 4}
    experiment.run(config, broken, lambda summary: None)
    assert run_files(broken) == run_files(whole)


@pytest.mark.slow
def test_a_run_that_is_resumed_after_some_rounds_keeps_the_same_models(
    uneven: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    config = uneven(checkpoint_every=4, checkpoints__keep="best")
    whole, broken = play(config, "whole"), RunFolder(tmp_path / "broken")
    for after in (1, 3, 5):
        run_until(config, broken, after)
    experiment.run(config, broken, lambda summary: None)
    assert run_files(broken) == run_files(whole)


def test_a_run_that_did_not_keep_its_best_round_from_the_start_says_so(
    uneven: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_until(uneven(checkpoints__keep="last"), RunFolder(tmp_path / "run"), 3)
    experiment.run(uneven(), folder, lambda summary: None)
    assert "the models of round 1, the best so far, are not kept" in caplog.text
    assert Checkpoints(folder.checkpoints).rounds() == [2, 5, 6]


def test_a_kept_checkpoint_is_the_one_that_was_written_then(
    uneven: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    """A client that trained after the best round keeps the file of that round too."""
    later = play(uneven(), "later")
    for server_round in (1, 2):
        then = play(uneven(rounds=server_round), f"then-{server_round}")
        name = f"round-{server_round:05d}"
        for path in (then.checkpoints / name).glob("*.safetensors"):
            assert (later.checkpoints / "kept" / name / path.name).read_bytes() == path.read_bytes()
        for path in (then.checkpoints / "clients").glob(f"*-{name}.safetensors"):
            assert (later.checkpoints / "clients" / path.name).read_bytes() == path.read_bytes()
