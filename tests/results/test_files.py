"""Files of records: what a kill cut short is left out, and what is damaged is named."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsim.cli.arguments import check_files, round_of
from fedsim.errors import ConfigError
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.results.files import by_round, copy_writable, keep_rounds, read_rows, write_folder, write_whole
from fedsim.results.folder import RunFolder
from fedsim.results.records import Records
from partitions.archive import write_archive

ROWS = b'{"round": 1, "up": 3}\n{"round": 2, "up": 5}\n'
BROKEN_LINES = {
    "cut": b'{"round": 2, "u\n',
    "bits": b'{"round": 2, "up\xff": 5}\n',
    "empty": b"\n",
    "zeros": b"\0\0\0\0\n",
    "number": b"17\n",
    "brackets": b"[" * 100_000 + b"\n",
    "digits": b'{"round": ' + b"9" * 5000 + b"}\n",
    "no round": b'{"up": 5}\n',
}


@pytest.mark.parametrize("broken", BROKEN_LINES.values(), ids=BROKEN_LINES)
@pytest.mark.parametrize("read", [read_rows, lambda path: keep_rounds(path, 1)])
def test_a_broken_line_inside_records_is_named_and_nothing_changed(
    broken: bytes, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(ROWS + broken + ROWS)
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is damaged in line 3; remove the run's folder"):
        read(path)
    assert path.read_bytes() == ROWS + broken + ROWS


@pytest.mark.parametrize(
    ("make", "kind"), [(os.mkfifo, "a named pipe"), (lambda path: path.symlink_to("/dev/null"), "a device")]
)
def test_a_file_does_not_take_the_place_of_a_device_or_a_pipe(
    make: Callable[[Path], object], kind: str, tmp_path: Path
) -> None:
    make(tmp_path / "table.csv")
    with pytest.raises(OSError, match=f"it is {kind} and not a file"):
        write_whole(tmp_path / "table.csv", "a,b")
    with pytest.raises(ConfigError, match=f"--csv .*table.csv cannot be written: it is {kind} and not a file; give a"):
        check_files({"--csv": tmp_path / "table.csv"})
    assert not (tmp_path / "table.csv").is_file()


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_rights_that_the_umask_leaves_and_links_stay(umask: int, mode: int, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to("table.csv")
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "link.csv", "a,b")
        write_whole(tmp_path / ("x" * 251 + ".csv"), "c")
        write_archive(tmp_path / "split.npz", {"a": np.zeros(1, np.int64)}, np.zeros(1, np.int64))
        Records(RunFolder(tmp_path)).append("timing", [{"round": 1}])
    finally:
        os.umask(before)
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "table.csv").read_text() == "a,b"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
    assert len(list(tmp_path.iterdir())) == 5


def test_options_may_name_a_new_file_and_no_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    check_files({"--csv": tmp_path / "new.csv", "--latex": None})
    with pytest.raises(ConfigError, match=r"--csv .*loop cannot be written: Too many levels of symbolic links"):
        check_files({"--csv": tmp_path / "loop"})


def test_only_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(ROWS + b'{"round": 3, "u')
    assert read_rows(path).to_dict("list") == {"round": [1, 2], "up": [3, 5]}


def test_copies_of_checkpoints_and_tables_under_other_names_do_not_count(tmp_path: Path) -> None:
    for name in ("round-00002", "round-00003", "round-00003.bak", "round-old", "round-100000", "round-7"):
        (tmp_path / name).mkdir()
    assert Checkpoints(tmp_path).rounds() == [2, 3, 100_000]
    for name in ("round-00004.parquet", "round-00004 (copy).parquet", "round-00005.parquet.bak"):
        (tmp_path / name).touch()
    assert list(by_round(tmp_path, ".parquet")) == [4]


@pytest.mark.parametrize("text", ["9" * 5000, "-1", "1.0", "", "\u00b2"])
def test_a_round_is_a_number_of_few_digits(text: str) -> None:
    with pytest.raises(ConfigError, match="must be 'best', 'last' or the number of a round"):
        round_of(text)
    assert round_of("12") == 12


def test_a_copy_of_what_may_only_be_read_may_be_written(tmp_path: Path) -> None:
    inner = tmp_path / "archive" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("content")
    for path in (inner / "file", inner, inner.parent):
        path.chmod(path.stat().st_mode & ~0o222)
    copy_writable(inner.parent, tmp_path / "copy")
    copy_writable(inner / "file", tmp_path / "single")
    for path in (inner.parent, inner):
        path.chmod(0o755)
    copies = [tmp_path / "single", *(tmp_path / "copy").rglob("*"), tmp_path / "copy"]
    assert all(path.stat().st_mode & 0o200 for path in copies)
    assert [path.read_text() for path in copies if path.is_file()] == ["content"] * 2


def test_of_two_that_fill_a_folder_at_once_the_faster_has_it_and_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    path, left = tmp_path / "run-s1", tmp_path / ".run-s1.killed"
    (left / "run-s1").mkdir(parents=True)
    other = tmp_path / ".run-s10.copying"
    other.mkdir()
    with write_folder(path) as slower:
        (slower / "of").write_text("slower")
        with write_folder(path) as faster:
            (faster / "of").write_text("faster")
        copy_writable(path / "of", slower / "again")
    assert (path / "of").read_text() == "faster"
    assert sorted(tmp_path.iterdir()) == [other, path]
    with pytest.raises(FileNotFoundError), write_folder(tmp_path / "another"):
        copy_writable(tmp_path / "nothing", tmp_path / "there")
