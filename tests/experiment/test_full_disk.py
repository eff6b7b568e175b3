"""A full disk: one line that names the file, no traceback of the log, and the run resumes once there is room."""

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fedsim.config import Config
from fedsim.errors import about_file, system_line
from fedsim.experiment.sweep.sweep import name_runs, run_all
from fedsim.results.files import copy_writable, write_whole
from fedsim.results.reading import NotEvaluatedError, read_result
from tests.conftest import run_files


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file become larger, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("size", [100, 1500, 4000])
def test_a_run_that_finds_no_room_names_the_file_and_resumes(
    size: int, tiny: Callable[..., Config], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny(barriers={"every": 0}, evaluate_every=1)
    whole, run = (
        replace(each, with_page=False) for name in ("whole", "full") for each in name_runs([config], tmp_path / name)
    )
    with room_for(size):
        [failure] = run_all([run]).values()
    assert f"{run.folder.path}" in failure.message
    assert "File too large; free some space, or choose another folder; rerun the same command" in failure.message
    assert not failure.trace
    assert "Logging error" not in capfd.readouterr().err
    assert run_all([run]) == run_all([whole]) == {}
    assert run_files(run.folder) == run_files(whole.folder)


def test_rows_of_a_round_that_was_not_finished_are_no_results(tiny: Callable[..., Config], tmp_path: Path) -> None:
    run = replace(name_runs([tiny(barriers={"every": 0})], tmp_path)[0], with_page=False)
    assert run_all([run]) == {}
    whole = read_result(run.folder).metrics
    run.folder.done.unlink()
    shutil.rmtree(run.folder.checkpoints)  # which seal the records of whole rounds
    lines = run.folder.timing.read_text().splitlines(keepends=True)
    for rounds in (1, 0):
        run.folder.timing.write_text("".join(lines[:rounds]))
        if rounds:
            assert read_result(run.folder).metrics.equals(whole[whole["round"] == 1])
        else:
            with pytest.raises(NotEvaluatedError):
                read_result(run.folder)


def test_a_copy_that_finds_no_room_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("c", "d"):
        (tmp_path / "a" / "b" / name).touch()
    (tmp_path / "a" / "b").chmod(0o500)
    copy_writable(tmp_path / "a", tmp_path / "copy", ignore=shutil.ignore_patterns("d"))
    assert [path.name for path in (tmp_path / "copy" / "b").iterdir()] == ["c"]
    assert os.access(tmp_path / "copy" / "b", os.W_OK)

    def copyfile(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(OSError, match="No space left on device") as full:
        copy_writable(tmp_path / "a", tmp_path / "second")
    assert system_line(full.value).startswith(f"{tmp_path}/a/b/c -> {tmp_path}/second/b/c: No space left")


def test_an_error_without_a_file_gets_the_one_that_is_written() -> None:
    with pytest.raises(OSError, match=r"No space left on device: 'a'"), about_file(Path("b")), about_file(Path("a")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match=r"^of a library$"), about_file(Path("a")):
        raise OSError("of a library")


@pytest.mark.parametrize("call", ["open", "replace"])
def test_a_file_that_cannot_be_written_is_named_and_not_its_temporary_one(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *others: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path), None, *(others if call == "replace" else ()))

    monkeypatch.setattr(*{"open": (os, "open"), "replace": (Path, "replace")}[call], refuse)
    with pytest.raises(PermissionError) as refused:
        write_whole(tmp_path / "table.csv", "a,b")
    monkeypatch.undo()
    assert system_line(refused.value) == f"{tmp_path}/table.csv: Permission denied"
    assert not list(tmp_path.iterdir())
