"""Faults have records of their own; runs of earlier versions have them among their metrics."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedsim.results.faults import fault_row, read_faults
from fedsim.results.files import keep_rounds, read_rows
from fedsim.results.folder import RunFolder, metric_row

BEFORE = [
    metric_row(1, 0, "train", "uploaded", "loss", 0.5, 10),
    metric_row(1, 3, "train", "uploaded", "left_out", 1.0, 0),
    metric_row(2, 2, "unseen", "personalised", "left_out", 1.0, 0),
    metric_row(4, 1, "train", "uploaded", "restored_from", 3.0, 0),
    metric_row(4, None, "test", "global", "loss", 0.5, 10),
]
NOW = [fault_row(5, 2, "train", "no luck"), fault_row(5, 1, "worker", "out of memory", 4)]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_without_faults_has_none(folder: RunFolder) -> None:
    write_rows(folder.metrics, BEFORE[:1])
    faults = read_faults(folder, read_rows(folder.metrics))
    assert list(faults) == ["round", "client", "stage", "reason", "restored_from", "kind"]
    assert len(faults) == 0


def test_runs_of_earlier_versions_have_their_faults_among_the_metrics(folder: RunFolder) -> None:
    write_rows(folder.metrics, BEFORE)
    faults = read_faults(folder, read_rows(folder.metrics))
    assert faults[["round", "client", "stage", "reason"]].to_numpy().tolist() == [
        [1, 3, "train", ""],
        [2, 2, "evaluate", ""],
        [4, 1, "worker", ""],
    ]
    assert faults["restored_from"].tolist()[-1] == 3
    assert faults["restored_from"].isna().tolist() == [True, True, False]


def test_a_run_that_was_resumed_by_a_newer_version_has_both(folder: RunFolder) -> None:
    write_rows(folder.metrics, BEFORE)
    write_rows(folder.faults, NOW)
    faults = read_faults(folder, read_rows(folder.metrics))
    assert faults["round"].tolist() == [1, 2, 4, 5, 5]
    assert faults["reason"].tolist() == ["", "", "", "no luck", "out of memory"]
    assert faults["restored_from"].tolist()[-1] == 4


def test_faults_after_the_checkpoint_are_cut_back_to_nothing(folder: RunFolder) -> None:
    write_rows(folder.faults, [fault_row(2, 0, "evaluate", "no eyes"), *NOW])
    keep_rounds(folder.faults, 4)
    assert read_rows(folder.faults)["round"].tolist() == [2]
    keep_rounds(folder.faults, 1)
    assert not folder.faults.exists()


def test_a_file_that_was_empty_stays(folder: RunFolder) -> None:
    write_rows(folder.communication, [])
    keep_rounds(folder.communication, 3)
    assert folder.communication.read_bytes() == b""
    keep_rounds(folder.metrics, 3)
    assert not folder.metrics.exists()
    pd.testing.assert_frame_equal(read_rows(folder.communication), pd.DataFrame())
