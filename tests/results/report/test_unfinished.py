"""Runs that were stopped are left out of a comparison, or all are compared at the last round that they have."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.pivot import pivot_of
from fedsim.results.report.comparing.pivot_text import pivot_table
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.rows import Comparison
from fedsim.results.report.comparing.verdict import verdict_of
from fedsim.results.report.drawing.paper.figures import paper_figure
from fedsim.results.result import Result
from tests.results.report import cases

Build = Callable[..., Result]
LOCAL = {"name": "local"}


@pytest.fixture
def build(tiny: Callable[..., Config]) -> Build:
    def result(accuracy: Sequence[float], *, finished: bool = True, **changes: Any) -> Result:
        config = tiny(rounds=4, **changes)
        return cases.result(config, [[value] for value in accuracy], up=[10] * len(accuracy), finished=finished)

    return result


@pytest.fixture
def stopped(build: Build) -> list[Result]:
    """Return two seeds of plain averaging, the second stopped after round 2, and one of local training."""
    return [
        build([0.1, 0.2, 0.3, 0.4]),
        build([0.5, 0.9], seed=1, finished=False),
        build([0.1, 0.1, 0.2, 0.2], strategy=LOCAL),
    ]


def values(comparison: Comparison, key: str) -> list[float]:
    return [row.values[key].mean for row in comparison.rows]


def test_a_stopped_run_is_in_no_mean_and_sets_no_budget(stopped: list[Result]) -> None:
    comparison = compare(stopped, Question(budgets={"bytes": None}))
    assert values(comparison, "personalised") == pytest.approx([0.4, 0.2])
    assert [row.group.seeds for row in comparison.rows] == [1, 1]
    assert values(comparison, "at_bytes") == pytest.approx([0.4, 0.2])
    [light, *_] = verdict_of(comparison).lights
    assert light.level == "warning"
    assert light.text == (
        f"1 unfinished run is left out: {stopped[1].folder.path.name} (round 2 of 4); resume with 'fedsim run', or "
        "compare all at their common round with --unfinished"
    )


def test_unfinished_runs_are_compared_at_the_last_round_that_all_have(stopped: list[Result]) -> None:
    comparison = compare(stopped, Question(unfinished=True, budgets={"bytes": None}))
    assert values(comparison, "rounds") == [2, 2]
    assert values(comparison, "personalised") == pytest.approx([(0.2 + 0.9) / 2, 0.1])
    assert values(comparison, "up") == [20, 20]
    assert values(comparison, "at_bytes") == pytest.approx([(0.2 + 0.9) / 2, 0.1])
    text = verdict_of(comparison).lights[0].text
    assert text.startswith("compared at round 2, the last round of all runs; unfinished: ")


def test_a_run_that_stopped_early_by_its_own_rule_is_finished(stopped: list[Result], build: Build) -> None:
    early = build([0.7], local__lr=0.3)
    assert values(compare([*stopped, early]), "rounds") == [4, 4, 1]
    assert values(compare([*stopped, early], Question(unfinished=True)), "rounds") == [2, 2, 1]


def test_a_run_without_its_mark_of_the_end_is_finished_after_all_its_rounds(build: Build) -> None:
    assert not compare([build([0.1] * 4, finished=False), build([0.2] * 4, seed=1)]).unfinished


def test_the_common_round_is_one_that_all_have_evaluated(build: Build) -> None:
    seldom = cases.result(build([0.0]).config, [[float("nan")], [0.3], [float("nan")], [0.7]])
    other = build([0.1, 0.2, 0.3], seed=1, finished=False)
    assert values(compare([seldom, other], Question(unfinished=True)), "personalised") == pytest.approx([0.25])
    first = build([0.1], seed=1, finished=False)
    with pytest.raises(ConfigError, match=r"--unfinished: .*\(round 1 of 4\) and the other runs have no evaluated"):
        compare([seldom, first], Question(unfinished=True))


def test_runs_of_which_none_is_finished_are_refused_and_one_alone_is_shown(stopped: list[Result]) -> None:
    with pytest.raises(ConfigError, match=r"none of 2 runs is finished: .* with --unfinished"):
        compare([stopped[1], stopped[1]])
    alone = compare([stopped[1]])
    assert values(alone, "personalised") == [0.9]
    text = verdict_of(alone).lights[0].text
    assert text == f"unfinished: {stopped[1].folder.path.name} (round 2 of 4); resume it with 'fedsim run'"
    assert text in pivot_table(pivot_of(alone)).notes
    assert paper_figure("curves", [stopped[1]])[1] == [text]
