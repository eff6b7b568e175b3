"""Temporary folders: removed with their process, or by the next run once their process is gone."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.config import Config
from fedsim.federation.engines import scratch
from fedsim.federation.engines.scratch import LOCK, Scratch, remove_leftovers
from fedsim.results.folder import RunFolder

OWNER = """
import sys
from pathlib import Path
from fedsim.federation.engines.scratch import Scratch
held = Scratch("states", Path(sys.argv[1]))
print(held.path, flush=True)
sys.stdin.read()
"""


def test_a_folder_ends_with_what_needs_it(tmp_path: Path) -> None:
    one, other = Scratch("states", tmp_path), Scratch("ray", tmp_path)
    (one.path / "state").write_text("3")
    assert one.path.stat().st_mode & 0o077 == 0
    path = one.path
    del one
    assert list(tmp_path.iterdir()) == [other.path]
    other.remove()
    assert not path.exists()
    assert not other.path.exists()


def test_a_leftover_is_removed_only_when_its_process_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        theirs = Path(owner.stdout.readline().strip())
        (theirs / "inside").mkdir()
        remove_leftovers(tmp_path)
        assert theirs.exists()
        owner.send_signal(signal.SIGKILL)
    assert theirs.exists()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def killed(folder: Path) -> Path:
    """Make what a process that was killed leaves."""
    folder.mkdir(parents=True)
    (folder / LOCK).touch()
    return folder


def test_no_folder_of_another_user_or_another_program_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [killed(tmp_path / "elsewhere" / "fedsim-states-12345678"), tmp_path / "fedsim-states-abcdefgh"]
    kept[1].mkdir()
    (kept[1] / ".lock").touch()  # as in the folder of a run
    (tmp_path / "fedsim-ray-linkedto").symlink_to(kept[0])
    remove_leftovers(tmp_path)
    theirs = killed(tmp_path / "fedsim-ray-87654321")
    with monkeypatch.context() as another:
        another.setattr(os, "geteuid", lambda: theirs.stat().st_uid + 1)
        remove_leftovers(tmp_path)
    assert all((each / name).exists() for each, name in zip([*kept, theirs], [LOCK, ".lock", LOCK], strict=True))
    remove_leftovers(tmp_path)
    assert not theirs.exists()


def test_a_folder_that_is_taken_for_a_leftover_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    lock = scratch.FileLock

    def late(path: Path, **options: object) -> object:
        if not made:
            made.append(path.parent)
            path.touch()
            remove_leftovers(tmp_path)
        return lock(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(scratch, "FileLock", late)
    held = Scratch("states", tmp_path)
    assert made
    assert held.path.stat().st_mode & 0o077 == 0
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [held.path]


def test_a_local_run_opens_no_socket(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert len(list(play(tiny(rounds=1, engine__workers=2)).checkpoints.iterdir())) > 0
