"""What the user sees of runs side by side."""

import logging
import re

import pytest
from rich.cells import cell_len

from fedsim.experiment.rounds import RoundSummary
from fedsim.experiment.sweep.bars import description
from fedsim.experiment.sweep.progress import Others, Progress


def test_a_terminal_shows_a_bar_for_each_run_under_way_and_one_for_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    with Progress(runs=3, rounds=9) as progress:
        for name in ("first", "second", "third"):
            progress.start(name, 3)
        for server_round in (1, 2):
            progress.advance("second", RoundSummary(server_round, 0.25, 0.5))
        progress.end("third")
        progress.log("first", logging.WARNING, "look [out]")
    shown = re.sub(r"\x1b\[[0-9;?]*\w", "", capsys.readouterr().err)
    assert "WARNING first: look [out]\n" in shown
    last = shown.rstrip().splitlines()[-3:]
    assert [re.findall(r"^\w+|\d+/\d+", line) for line in last] == [["3", "2/6"], ["first", "0/3"], ["second", "2/3"]]
    assert "personalised  25.0% global  50.0%" in last[2]


def test_without_a_terminal_each_round_is_a_line_with_the_name_of_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(runs=2, rounds=2) as progress:
        for name in ("first", "second"):
            progress.start(name, 1)
        progress.advance("second", RoundSummary(1, 0.25))
        progress.advance("first", RoundSummary(1))
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert lines == [["second", "personalised", "25.0%", "round", "1"], ["first", "round", "1"]]


@pytest.mark.parametrize("has_widgets", [True, False])
def test_a_notebook_shows_bars_only_where_it_can(has_widgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    found = {"ipywidgets": object() if has_widgets else None}
    monkeypatch.setattr("fedsim.experiment.sweep.progress.find_spec", found.get)
    assert Progress(1, 1)._bars.disable is not has_widgets


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_count_the_bar_and_the_time_left_have_room_on_every_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    name = "tuning layer_set(shared=conv1 | head), strategy.mu = 0.1"
    with Progress(runs=2, rounds=60) as progress:
        progress.start(name, 30)
        for server_round in (1, 2):
            progress.advance(name, RoundSummary(server_round, 0.934, 0.82, missing=2, faults=3))
    shown = re.sub(r"\x1b\[[0-9;?]*\w", "", capsys.readouterr().err)
    for line, count in zip(shown.rstrip().splitlines()[-2:], ("2/60", "2/30"), strict=True):
        assert re.search(rf"[━╸╺] +{count} .*left +\d:\d\d:\d\d", line.replace("\r", "")), line
        assert cell_len(line.strip()) <= width
    assert ("personalised  93.4% (2 missing)" in line) == (width >= 80)


@pytest.mark.parametrize("room", range(70))
def test_a_name_is_shortened_before_a_value_is_left_out_and_no_value_is_cut(room: int) -> None:
    values = ["personalised  93.4%", "global  82.0%"]
    text = description("数据集 layer_set(shared=conv1 | head) seed 12", values, room)
    assert cell_len(text) <= room
    assert "9" not in text or values[0] in text
    assert "8" not in text or values[1] in text
    if 12 < room < 45:
        assert "…" in text


def test_the_bar_of_all_runs_counts_the_runs_before_and_after_these(capsys: pytest.CaptureFixture[str]) -> None:
    for others, count in ((Others(4, 20), "0/29"), (Others(4, 20, done=True), "20/29"), (Others(), "0/9")):
        with Progress(3, 9, others) as progress:
            [total] = progress._bars.tasks
            assert f"{total.completed:g}/{total.total:g}" == count
            assert total.description == f"{3 + others.runs} runs"


def test_quiet_runs_show_warnings_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress(1, 1, quiet=True) as progress:
        progress.start("first", 1)
        progress.advance("first", RoundSummary(1, 0.25))
        progress.log("first", logging.WARNING, "look out")
        progress.say("first: done")
    assert capsys.readouterr().err == "WARNING first: look out\n"
