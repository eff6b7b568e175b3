"""A run that is killed goes on from its last complete round, with the same bytes as one that never stopped."""

import errno
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment import beginning
from fedsim.experiment import run as experiment
from fedsim.experiment.sweep.sweep import name_runs, run_all
from fedsim.results import report
from fedsim.results.files import read_rows, write_whole
from fedsim.results.folder import RunFolder
from fedsim.results.reading import find_runs
from fedsim.results.status import status_of
from tests import commands
from tests.conftest import run_files, run_until

EXPERIMENT = """
rounds = 6
clients = 4
participation = 0.75
checkpoint_every = 2
[data]
train_examples = 240
flip = true
crop = 1
[features]
skew = "noise"
[partition]
alpha = 0.5
[model]
name = "cnn"
[local]
momentum = 0.9
optimizer_state = "keep"
[strategy]
name = "layer_cycle"
[barriers]
every = 2
pairs = 1
examples = 100
[engine]
workers = 1
"""


def start(experiment_file: Path, out: Path) -> BaseProcess:
    return commands.start("run", str(experiment_file), "--out", str(out))


def exit_code(process: BaseProcess) -> int | None:
    process.join()
    return process.exitcode


def run_folder(out: Path) -> RunFolder | None:
    return next((RunFolder(path.parent) for path in out.glob("*/*/config.toml")), None)


def kill_in_round(experiment_file: Path, out: Path, after_round: int) -> None:
    """Start the run and kill it in the middle of a later round."""
    process = start(experiment_file, out)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        folder = run_folder(out)
        # Timing is the last line that a round writes, so the next round is under way.
        if folder and folder.timing.exists() and len(read_rows(folder.timing)) >= after_round:
            break
        time.sleep(0.005)
    time.sleep(0.05)
    process.kill()
    assert exit_code(process) == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bytes_of_an_unbroken_one(tmp_path: Path) -> None:
    experiment_file = tmp_path / "study.toml"
    experiment_file.write_text(EXPERIMENT)
    assert exit_code(start(experiment_file, tmp_path / "unbroken")) == 0
    for after_round in (2, 4):  # the first checkpoint is there; a kill may come a round late
        kill_in_round(experiment_file, tmp_path / "killed", after_round)
        killed = run_folder(tmp_path / "killed")
        assert killed is not None
        assert not killed.done.exists()
    assert exit_code(start(experiment_file, tmp_path / "killed")) == 0
    unbroken, resumed = run_folder(tmp_path / "unbroken"), run_folder(tmp_path / "killed")
    assert unbroken is not None
    assert resumed is not None
    assert len(resumed.read_env()["started"]) == 3
    assert run_files(resumed) == run_files(unbroken)


@pytest.mark.slow
def test_a_kill_while_a_round_is_written_leaves_nothing_of_it(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    """A round's rows without its checkpoint, and half a line, are dropped and written anew."""
    config = tiny(rounds=3)
    whole = play(config, "whole")
    broken = play(tiny(rounds=2), "broken")
    for path in (broken.metrics, broken.communication):
        later = [
            line.replace('"round": 2', '"round": 3')
            for line in path.read_text().splitlines(True)
            if '"round": 2' in line
        ]
        path.write_text(path.read_text() + "".join(later) + '{"round": 3, "cli')
    shutil.copy(broken.measured("barriers", 2), broken.measured("barriers", 3))
    (broken.checkpoints / ".round-00003").mkdir()
    experiment.run(config, broken, lambda summary: None)
    assert run_files(broken) == run_files(whole)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_can_continue_with_another_engine(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    whole = play(tiny(rounds=3), "whole")
    first = play(tiny(rounds=2), "first")
    config = tiny(rounds=3, engine={"name": "ray", "workers": 2})
    experiment.run(config, first, lambda summary: None)
    assert run_files(first) == run_files(whole)


def test_a_run_that_continues_keeps_the_cohort_that_was_chosen_unless_it_is_told_another(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], caplog: pytest.LogCaptureFixture
) -> None:
    folder = play(tiny(rounds=1, engine={"cohort": 2}))
    for rounds, cohort, expected, ran in ((2, "auto", 2, None), (3, 3, 3, 2), (4, 1, 1, 3), (5, 1, 1, None)):
        caplog.clear()
        experiment.run(tiny(rounds=rounds, engine={"cohort": cohort}), folder, lambda summary: None)
        assert folder.read_env()["cohort"] == expected
        assert (f"resumes with engine.cohort = {cohort}, and ran with {ran}: their" in caplog.text) == bool(ran)


@pytest.mark.parametrize("written", [0, 1, 3])
def test_a_run_that_is_killed_as_it_begins_is_no_run_yet_to_commands_about_others(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    whole, paths = play(tiny(rounds=1), "whole-s0"), list[Path]()

    def write(path: Path, content: bytes) -> None:
        if len(paths) == written:
            raise SystemExit
        paths.append(path)
        write_whole(path, content)

    monkeypatch.setattr(beginning, "write_whole", write)
    with pytest.raises(SystemExit):
        play(tiny(rounds=1, seed=1), "killed-s1")
    assert [folder.path for folder in find_runs([whole.path.parent])] == [whole.path]


def test_a_second_process_is_kept_out_of_a_run_that_ends_and_a_failure_at_the_end_is_known(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(rounds=1, barriers__every=0)
    (run,) = name_runs([config], tmp_path)
    problems = list[str]()

    def write_run(*_: object) -> None:
        problems.append(status_of(run.folder).state)
        with pytest.raises(ConfigError, match="is in use by another process"):
            experiment.run(config, run.folder, lambda summary: None)
        raise OSError(errno.ENOSPC, "No space left on device", "report.html")

    with monkeypatch.context() as full:
        full.setattr(report, "write_run", write_run)
        assert list(run_all([run], 1)) == [run.name]
    assert problems == ["running"]
    found = status_of(run.folder)
    assert (found.state, found.reason) == ("failed", "OSError: [Errno 28] No space left on device: 'report.html'")
    assert not run_all([replace(run, with_page=False)], 1)
    assert len(run.folder.read_env()["starts"]) == 2


def test_a_second_process_is_kept_out_of_a_run_under_way(
    tiny: Callable[..., Config], tmp_path: Path, play: Callable[..., RunFolder]
) -> None:
    config, folder = tiny(), RunFolder(tmp_path / "busy")

    def second(summary: object) -> None:
        with pytest.raises(ConfigError, match="busy is in use by another process"):
            experiment.run(config, folder, lambda summary: None)

    experiment.run(config, folder, second)
    assert run_files(folder) == run_files(play(config, "alone"))


def test_a_run_that_is_done_plays_no_round_again(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    folder = play(tiny())
    before = run_files(folder)
    experiment.run(tiny(), folder, lambda summary: pytest.fail("a round was played"))
    assert run_files(folder) == before


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def test_a_run_with_adamw_a_schedule_and_a_frozen_layer_resumes_with_the_same_bytes(
    engine: str, tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    settings = {
        "rounds": 4,
        "participation": 0.75,
        "model": {"name": "mlp", "hidden": [12, 8], "freeze": "fc2"},
        "strategy": {"name": "layer_cycle"},
        "local": {"optimizer": "adamw", "lr": 0.01, "optimizer_state": "keep", "schedule": "cosine", "warmup": 2},
    }
    config = tiny(**settings, engine={"name": engine, "workers": 1})
    folder = run_until(config, RunFolder(tmp_path / "stopped"), 2)
    kept = load_file(next(folder.checkpoints.glob("clients/*-round-00002.safetensors")))
    assert any("exp_avg_sq/fc1.weight" in name for name in kept)
    assert not any("fc2" in name for name in kept)
    experiment.run(config, folder, lambda summary: None)
    assert run_files(folder) == run_files(play(tiny(**settings), "whole"))
