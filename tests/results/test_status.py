"""How far a run is, read without disturbing it."""

import errno
import fcntl
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.results import seals
from fedsim.results import status as module
from fedsim.results.curves import Curves, Measured
from fedsim.results.folder import RunFolder, metric_row
from fedsim.results.reading import read_result
from fedsim.results.status import is_running, run_folders, status_of

OWN = Measured("personalised", "test", "accuracy", on_server=False)
BEGAN = "2026-01-01 10:00:00,000 INFO rounds 1 to 9, engine name='local'\n"


@pytest.fixture
def begun(tiny: Callable[..., Config], tmp_path: Path) -> RunFolder:
    """Return the folder of a run that has done 2 of 9 rounds, each in 3 seconds."""
    folder = RunFolder(tmp_path / "study" / "one-s0")
    folder.path.mkdir(parents=True)
    folder.config.write_text(tiny(rounds=9, strategy={"name": "layer_set", "shared": "head"}).to_toml())
    folder.log.write_text(BEGAN)
    _append(folder.timing, *({"round": at, "train": 2.0, "evaluate": 1.0} for at in (1, 2)))
    for at, values in ((1, (0.5, 0.7)), (2, (0.6, None))):
        for client, value in enumerate(values):
            _append(folder.metrics, metric_row(at, client, "train", "uploaded", "loss", 1.5 - at / 2, 10))
            row = metric_row(at, client, "test", "personalised", "accuracy", 0.0, 10) | {"value": value}
            _append(folder.metrics, row, row | {"metric": "loss"}, row | {"client": None, "model": "global"})
    return folder


def _append(path: Path, *rows: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_run_that_is_locked_is_running_and_its_last_rounds_tell_the_time_left(begun: RunFolder) -> None:
    with FileLock(begun.lock):
        found = status_of(begun)
    assert (found.state, found.round, found.rounds, found.seconds_left) == ("running", 2, 9, 21.0)
    assert (found.metric, found.value, found.value_round, found.missing) == ("accuracy", 0.6, 2, 1)
    assert (found.strategy, found.seed, found.settings["strategy.shared"]) == ("LG-FedAvg", 0, "head")
    assert status_of(begun).state == "stopped"
    assert status_of(begun).seconds_left is None


def test_a_round_that_has_failed_after_its_evaluation_has_no_value(begun: RunFolder) -> None:
    _append(begun.metrics, *(metric_row(3, client, "test", "personalised", "accuracy", 0.9, 10) for client in (0, 1)))
    found = status_of(begun)
    assert (found.round, found.value_round, found.value) == (2, 2, 0.6)


def test_looking_keeps_no_run_from_starting(begun: RunFolder) -> None:
    begun.lock.touch()
    before = {path: path.stat().st_mtime_ns for path in begun.path.rglob("*")}
    looking = os.open(begun.lock, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)  # another one who looks
    try:
        assert not is_running(begun)
        with pytest.raises(Timeout):
            FileLock(begun.lock, timeout=0).acquire()
    finally:
        os.close(looking)
    assert not is_running(begun)
    with FileLock(begun.lock, timeout=0):
        assert is_running(begun)
    assert {path: path.stat().st_mtime_ns for path in begun.path.rglob("*")} == before
    begun.lock.unlink()
    assert not is_running(begun)
    assert not begun.lock.exists()


@pytest.mark.parametrize(
    ("log", "state", "reason"),
    [
        (BEGAN + "2026-01-01 10:01:00,000 INFO the run was stopped\n", "stopped", None),
        (
            BEGAN + "2026-01-01 10:01:00,000 INFO the run failed: no client: all failed\n",
            "failed",
            "no client: all failed",
        ),
        (
            BEGAN + "2026-01-01 10:01:00,000 INFO the run failed\nTraceback\n  File\nKeyError: 'x'\n",
            "failed",
            "KeyError: 'x'",
        ),
        (BEGAN + "2026-01-01 10:01:00,000 INFO the run failed: once\n" + BEGAN, "stopped", None),
        ("", "stopped", None),
    ],
)
def test_a_run_that_failed_says_why_until_it_is_resumed(
    log: str, state: str, reason: str | None, begun: RunFolder
) -> None:
    begun.log.write_text(log)
    found = status_of(begun)
    assert (found.state, found.reason) == (state, reason)
    begun.done.touch()
    assert status_of(begun).state == "done"


def test_lines_that_are_being_written_are_left_out(begun: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = Curves(begun)
    assert curves.update()
    # One of two clients has no value in the second round: a gap.
    assert curves.of(OWN) == pytest.approx({1: 0.6, 2: math.nan}, nan_ok=True)
    assert not curves.update()
    row = json.dumps(metric_row(3, 0, "test", "personalised", "accuracy", 0.9, 10))
    for path, text in ((begun.metrics, row[:30]), (begun.timing, '{"round": 3, ')):
        with path.open("a") as file:
            file.write(text)
    assert not curves.update()
    assert status_of(begun).round == 2
    with begun.metrics.open("a") as file:
        file.write(row[30:] + "\n")
    assert curves.update()
    assert curves.of(OWN)[3] == 0.9
    # A resumed run cuts its records back to its checkpoint.
    lines = begun.metrics.read_text().splitlines(keepends=True)
    begun.metrics.write_text("".join(lines[:5]))
    assert curves.update()
    assert curves.of(OWN).keys() == {1}


@pytest.mark.parametrize("tail", [200, 700, 900, 1100, 2**16])
def test_the_newest_value_is_a_mean_over_all_clients_however_little_is_read(
    tail: int, begun: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _append(begun.timing, {"round": 3, "train": 2.0})
    for client in range(5):
        _append(begun.metrics, metric_row(3, client, "test", "personalised", "accuracy", client / 10, 10))
    monkeypatch.setattr(module, "TAIL", tail)
    found = status_of(begun)
    assert (found.value_round, found.value, found.missing) == (3, pytest.approx(0.2), 0)


def test_a_damaged_run_is_one_row_and_hides_no_other(begun: RunFolder) -> None:
    damaged = begun.path.with_name("two-s0")
    damaged.mkdir()
    (damaged / "config.toml").write_text("rounds = ")
    copied = begun.path.with_name(".three-s0.a1") / "three-s0"  # which a kill left
    copied.mkdir(parents=True)
    (copied / "DONE").touch()
    found = [status_of(folder) for folder in run_folders([begun.path.parent.parent])]
    assert sorted((each.state, "is not TOML" in (each.reason or "")) for each in found) == [
        ("damaged", True),
        ("stopped", False),
    ]


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "holds no run"), (tmp_path / "no", "is no folder")):
        with pytest.raises(ConfigError, match=why):
            run_folders([path])


def test_the_status_of_a_long_run_is_read_from_its_end(begun: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps(metric_row(1, 0, "test", "personalised", "accuracy", 0.5, 10)) + "\n"
    begun.metrics.write_text(line * 100_000)
    _append(begun.metrics, metric_row(2, 0, "test", "personalised", "accuracy", 0.25, 10))
    sizes: list[int] = []
    tail = module._tail
    monkeypatch.setattr(module, "_tail", lambda path, size: sizes.append(size) or tail(path, size))
    assert status_of(begun).value == 0.25
    assert sum(sizes) < begun.metrics.stat().st_size / 10


def test_folders_within_a_run_that_its_owner_has_closed_do_not_matter(
    begun: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun.checkpoints.mkdir()
    is_file = Path.is_file

    def closed(path: Path) -> bool:
        if begun.checkpoints in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", closed)
    for path in (begun.path, begun.path.parent, begun.path.parent.parent):
        assert [folder.path for folder in run_folders([path])] == [begun.path]


def test_a_file_that_its_owner_has_closed_is_not_called_damaged(
    play: Callable[..., RunFolder], tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = play(tiny(rounds=1, barriers__every=0))

    def closed(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(seals, "seal_of", closed)
    with pytest.raises(ConfigError, match=r"jsonl cannot be read \(Permission denied\); ask its owner for access$"):
        read_result(run)
