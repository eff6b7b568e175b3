"""The verdict says which method is best, by how much, and how certain that is."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import Config
from fedsim.results.report.comparing.best import best_and_ties
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.verdict import verdict_of
from fedsim.results.result import Result
from tests.results.report import cases

Build = Callable[..., Result]
FULL, LOCAL, BODY = {"name": "full"}, {"name": "local"}, {"name": "layer_set", "shared": "body"}


@pytest.fixture
def build(tiny: Callable[..., Config], tmp_path: Path) -> Build:
    def result(accuracy: Sequence[float], **changes: Any) -> Result:
        return cases.result(tiny(**changes), [accuracy], experiment=tmp_path)

    return result


def seeds_of(build: Build, strategy: dict[str, Any], *by_seed: Sequence[float], **changes: Any) -> list[Result]:
    return [build(values, strategy=strategy, seed=seed, **changes) for seed, values in enumerate(by_seed)]


def test_with_one_seed_there_is_no_interval(build: Build) -> None:
    runs = [build([0.4, 0.6], strategy=LOCAL), build([0.5, 0.6], strategy=BODY)]
    verdict = verdict_of(compare(runs))
    assert verdict.sentence == (
        "FedPer 55.0 against local 50.0: +5.0 with 1 seed, so no interval; 1 / 1 / 0 clients better / equal / worse."
    )
    assert verdict.lights[0].level == "warning"


def test_each_swept_setting_has_its_best(build: Build) -> None:
    runs = []
    for alpha, body in ((0.1, 0.9), (1.0, 0.3)):
        change = {"partition": {"scheme": "dirichlet", "alpha": alpha}}
        runs += seeds_of(build, LOCAL, [0.5, 0.5], [0.5, 0.7], **change)
        runs += seeds_of(build, BODY, [body, 0.5], [body, 0.7], **change)
    comparison = compare(runs)
    first, second = verdict_of(comparison).sentences
    # Differences of 0.2 and 0.2: no spread over the seeds.
    assert first == (
        "FedPer 75.0 against local 55.0 at alpha 0.1: +20.0 ± 0.0 with 2 seeds, distinguishable; "
        "2 / 2 / 0 clients better / equal / worse."
    )
    assert second.startswith("local 55.0 against FedPer 45.0 at alpha 1.0: +10.0 ± 0.0 with 2 seeds")
    assert [standing.best.name for standing in best_and_ties(comparison)] == ["FedPer", "local"]


def test_the_reference_is_the_baseline_if_there_is_one(build: Build) -> None:
    runs = [build([value], strategy=each) for value, each in ((0.5, LOCAL), (0.4, FULL), (0.6, BODY))]
    assert " against local 50.0" in verdict_of(compare(runs)).sentence
    assert " against FedAvg 40.0" in verdict_of(compare(runs, Question(baseline="full"))).sentence


def test_a_reference_that_is_itself_the_best_is_compared_with_the_next_best(build: Build) -> None:
    runs = [build([value], strategy=each) for value, each in ((0.5, LOCAL), (0.2, FULL), (0.4, BODY))]
    assert verdict_of(compare(runs)).sentence.startswith("local 50.0 against FedPer 40.0: +10.0")


def test_of_a_loss_the_lower_is_better(build: Build) -> None:
    runs = [build([value], strategy=each) for value, each in ((0.5, LOCAL), (0.4, BODY))]
    sentence = verdict_of(compare(runs, Question("loss"))).sentence
    assert sentence.startswith("local 0.500 against FedPer 0.600: -0.100 with 1 seed")


def test_what_is_not_distinguishable_from_the_best_is_a_tie(build: Build) -> None:
    runs = seeds_of(build, BODY, [0.9], [0.8], [0.7]) + seeds_of(build, FULL, [0.5], [0.9], [0.6])
    runs += seeds_of(build, LOCAL, [0.5], [0.39], [0.3])
    [standing] = best_and_ties(compare(runs))
    assert standing.best.name == "FedPer"
    assert [each.name for each in standing.ties] == ["FedAvg"]
    assert not standing.untested
