"""Standard streams that end before the work does: the work is done, and its exit code is the command's."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedsim.cli import commands as cli
from fedsim.cli.streams import Outlet, is_read
from fedsim.config import Config
from fedsim.results.folder import RunFolder

Start = Callable[[str, int], None]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Let this process have a file descriptor as one of its streams, as it has when it starts."""
    streams = []

    def start(name: str, number: int) -> None:
        stream = io.TextIOWrapper(io.FileIO(number, "w"), line_buffering=name == "stderr")
        streams.append(stream)
        monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, f"__{name}__", stream)

    yield start
    for stream in streams:
        stream.close()


def _without_reader() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def _code_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


@pytest.mark.slow
def test_work_is_done_though_nobody_reads_what_is_printed(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], started: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = play(tiny(rounds=1, barriers__every=0))
    monkeypatch.chdir(run.path.parent)
    for name in ("stdout", "stderr"):
        started(name, _without_reader())
    assert _code_of(monkeypatch, "compare", "run", "--csv", "a.csv", "--latex", "a.tex") == 0
    assert not is_read()
    assert [(run.path.parent / name).exists() for name in ("a.csv", "a.tex", "report.html")] == [True] * 3
    assert _code_of(monkeypatch, "verify", "run") == 0
    run.metrics.write_bytes(run.metrics.read_bytes()[:-10])
    assert _code_of(monkeypatch, "verify", "run") == 1


@pytest.mark.parametrize(("arguments", "code"), [(["list", "strategies"], 0), (["--help"], 0), (["watch", "none"], 2)])
def test_a_reader_that_leaves_does_not_change_the_exit_code(
    arguments: list[str], code: int, started: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        started(name, _without_reader())
    assert _code_of(monkeypatch, *arguments) == code


def test_a_full_disk_is_a_failure(
    started: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started("stdout", os.open("/dev/full", os.O_WRONLY))
    assert _code_of(monkeypatch, "list", "models") == 1
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_is_closed_is_no_failure(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, name, None)
    assert _code_of(monkeypatch, "list", "models") == 0
    assert bool(capsys.readouterr().out) == (name == "stderr")


def test_what_is_dropped_counts_as_written() -> None:
    outlet = Outlet(_without_reader(), "w")
    assert [outlet.write(b"abc"), outlet.write(memoryview(b"de"))] == [3, 2]
    assert outlet.is_abandoned
    outlet.close()


def test_a_current_folder_that_was_removed_is_reported_before_any_library_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert _code_of(monkeypatch, "compare", str(tmp_path)) == 2
    assert capsys.readouterr().err == "fedsim: error: the current folder was removed; change to another one\n"
