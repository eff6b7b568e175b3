"""``fedsim status`` and ``watch``, on a terminal, piped and for programs."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from fedsim.cli.actions import watching
from fedsim.cli.curves import _without_gaps
from fedsim.config import Config
from fedsim.results.folder import RunFolder, metric_row
from tests.conftest import Command, heed_interrupts

KEYS = {
    *("run", "strategy", "seed", "state", "round", "rounds", "seconds_left"),
    *("metric", "value", "value_round", "missing", "reason", "started", "settings"),
}


@pytest.fixture
def fedsim(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watching, "EVERY_SECONDS", 0.05)
    return command


@pytest.fixture
def study(tiny: Callable[..., Config], tmp_path: Path) -> list[RunFolder]:
    """Return folders of two runs of which two of three rounds are done."""
    folders = [RunFolder(tmp_path / "runs" / "study" / f"{alpha}-s0") for alpha in (0.1, 0.3)]
    for folder, alpha in zip(folders, (0.1, 0.3), strict=True):
        folder.path.mkdir(parents=True)
        folder.config.write_text(tiny(rounds=3, partition__alpha=alpha).to_toml())
        for server_round in (1, 2):
            _do_round(folder, server_round)
    return folders


def _do_round(folder: RunFolder, server_round: int) -> None:
    rows: list[dict[str, Any]] = [
        metric_row(server_round, 0, "train", "uploaded", "loss", 2 / server_round, 10),
        metric_row(server_round, 0, "test", "personalised", "accuracy", server_round / 4, 10),
        metric_row(server_round, None, "test", "global", "accuracy", server_round / 8, 10),
    ]
    for path, lines in ((folder.metrics, rows), (folder.timing, [{"round": server_round, "train": 30.0}])):
        with path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_status_of_runs_is_a_row_each(
    width: int, fedsim: Command, study: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    study[1].done.touch()
    with FileLock(study[0].lock):
        code, out, _ = fedsim("status")
    assert (code, out.splitlines()[0]) == (0, "2 runs in runs/study: 1 done, 1 running")
    shown = _plain(out)
    assert max(map(len, shown.partition(" + ")[0].splitlines())) <= width
    assert re.search(r"0\.1 .*running", shown)
    if width > 40:
        assert re.search(r"0\.3-s0 .* done +2/3 .* +50\.0%", shown)
        assert "30 s" in shown


def test_the_status_for_programs_has_the_documented_keys(fedsim: Command, study: list[RunFolder]) -> None:
    code, out, _ = fedsim("status", str(study[0].path.parent), "--json")
    found = json.loads(out)
    assert (code, found.keys(), found["format"]) == (0, {"format", "runs"}, 1)
    assert all(each.keys() == KEYS for each in found["runs"])
    assert [each["value"] for each in found["runs"]] == [0.5, 0.5]
    documented = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
    assert all(f"`{key}`" in documented for key in KEYS)


def test_a_run_that_is_over_is_drawn_once(fedsim: Command, study: list[RunFolder]) -> None:
    study[0].done.touch()
    code, out, err = fedsim("watch", str(study[0].path))
    assert (code, err) == (0, "")
    assert out.startswith("FedAvg seed 0  done  round 2 of 3  personalised accuracy 50.0%\n")
    assert [out.count(text) for text in ("accuracy (%) by round", "loss by round", "┌")] == [1, 1, 2]
    study[1].log.write_text("2026-01-01 10:01:00,000 INFO the run failed: too [bold]hot[/bold]\x1b[31m\n")
    code, out, _ = fedsim("watch", str(study[1].path))
    assert code == 1
    assert "too [bold]hot[/bold]\\x1b[31m" in out


@pytest.mark.parametrize("has_terminal", [True, False])
def test_a_run_is_followed_until_it_ends(
    has_terminal: bool, fedsim: Command, study: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    lock = FileLock(study[0].lock, thread_local=False)
    lock.acquire()

    def end() -> None:
        _do_round(study[0], 3)
        time.sleep(0.3)
        study[0].done.touch()
        lock.release()

    thread = threading.Timer(0.3, end)
    thread.start()
    code, out, _ = fedsim("watch", "runs/study")  # the only one that is running
    thread.join()
    assert code == 0
    shown = _plain(out)
    assert "running  round 3 of 3" in shown
    assert shown.rstrip().rpartition("FedAvg seed 0")[2].startswith("  done  round 3 of 3  personalised accuracy 75.0%")
    assert shown.count("accuracy (%) by round") >= 1 + 2 * has_terminal


def test_one_of_several_runs_must_be_named(fedsim: Command, study: list[RunFolder]) -> None:
    code, _, err = fedsim("watch", "runs")
    assert code == 2
    assert err == "fedsim: error: runs holds 2 runs; give one of them, such as runs/study/0.1-s0\n"
    code, _, err = fedsim("status", "nowhere")
    assert code == 2
    assert err.startswith("fedsim: error: nowhere is no folder; give run folders")


@pytest.mark.slow
def test_ctrl_c_ends_the_watch_and_not_the_run(study: list[RunFolder]) -> None:
    with FileLock(study[0].lock):
        command = [sys.executable, "-c", "from fedsim.cli import main; main()", "watch", str(study[0].path)]
        environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            preexec_fn=heed_interrupts,
        )
        assert process.stdout
        while "round 2 of 3" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (130, "")


def test_a_curve_has_a_gap_where_a_clients_value_is_missing() -> None:
    parts = list(_without_gaps({1: 0.1, 2: math.nan, 3: 0.3, 4: 0.4}))
    assert parts == [{1: 0.1}, {3: 0.3, 4: 0.4}]
