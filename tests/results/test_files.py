"""Files of records: what a kill cut short is left out, and what is damaged is named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.errors import ConfigError
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.results.files import by_round, keep_rounds, read_rows

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
