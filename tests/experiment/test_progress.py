"""What the user sees of runs side by side."""

import logging
import re

import pytest

from fedsim.experiment.rounds import RoundSummary
from fedsim.experiment.sweep.progress import Progress


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
    assert [re.findall(r"^\w+|\d+/\d+", line) for line in last] == [["3", "2/9"], ["first", "0/3"], ["second", "2/3"]]
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
