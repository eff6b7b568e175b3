"""The verdict says which method is best, by how much, and how certain that is."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsim.config import Config
from fedsim.results.report.comparing.best import best_and_ties
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.lights import Light
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.rows import Comparison
from fedsim.results.report.comparing.tables import chosen_columns
from fedsim.results.report.comparing.verdict import Verdict, verdict_of
from fedsim.results.result import Result
from tests.results.report import cases

Build = Callable[..., Result]
FULL, LOCAL, BODY = {"name": "full"}, {"name": "local"}, {"name": "layer_set", "shared": "body"}


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
    assert sentence.startswith("Loss, lower is better: local 0.500 against FedPer 0.600: -0.100 with 1 seed")


def test_what_is_not_distinguishable_from_the_best_is_a_tie(build: Build) -> None:
    runs = seeds_of(build, BODY, [0.9], [0.8], [0.7]) + seeds_of(build, FULL, [0.5], [0.9], [0.6])
    runs += seeds_of(build, LOCAL, [0.5], [0.39], [0.3])
    [standing] = best_and_ties(compare(runs))
    assert standing.best.name == "FedPer"
    assert [each.name for each in standing.ties] == ["FedAvg"]
    assert not standing.untested


def lights(comparison: Comparison) -> list[str]:
    return [f"{light.level}: {light.text}" for light in verdict_of(comparison).lights]


@pytest.fixture
def three_methods(build: Build) -> list[Result]:
    """Return three seeds each of methods of which the first is distinguishable from the last only."""
    runs = seeds_of(build, BODY, [0.9], [0.8], [0.7]) + seeds_of(build, FULL, [0.5], [0.9], [0.6])
    return runs + seeds_of(build, LOCAL, [0.5], [0.3], [0.31])


def test_p_values_are_corrected_together_as_holm_does(three_methods: list[Result]) -> None:
    plain, corrected = (compare(three_methods, Question(correct=each)) for each in (None, "holm"))
    p = [row.values["p"].mean for row in plain.rows]
    ours, full, local = (np.array(values) for values in ([0.9, 0.8, 0.7], [0.5, 0.9, 0.6], [0.5, 0.3, 0.31]))
    assert np.isnan(p[0])
    assert p[1:] == pytest.approx([stats.ttest_rel(ours, full).pvalue, stats.ttest_rel(ours, local).pvalue])
    assert p[2] < p[1]
    # Of two, the smaller is doubled.
    assert [row.values["p"].mean for row in corrected.rows][1:] == pytest.approx([p[1], 2 * p[2]])
    assert "p" not in [column.key for column in chosen_columns(plain)]
    assert corrected.columns[-1].heading == "p vs best, Holm"
    assert "not distinguishable" not in verdict_of(corrected).sentences[0]
    assert f"distinguishable (p = {2 * p[2]:.3f}, Holm's correction for 2 tests)" in verdict_of(corrected).sentences[0]
    assert verdict_of(corrected).sentences[1] == "Not distinguishable from FedPer either: FedAvg."
    assert any("2 comparisons with the best, uncorrected" in light for light in lights(plain))
    assert not any("uncorrected" in light for light in lights(corrected))


@pytest.mark.parametrize("baseline", [None, "local"])
def test_at_equal_cost_p_values_are_of_the_values_there(tiny: Callable[..., Config], baseline: str | None) -> None:
    # 20 bytes are one round of FedAvg and both rounds of FedPer, whose last rounds are level.
    there = {"FedAvg": [0.5, 0.62, 0.55], "FedPer": [0.8, 0.84, 0.7], "local": [0.5, 0.6, 0.5]}
    runs = []
    for (name, values), strategy, up in zip(there.items(), (FULL, BODY, LOCAL), ([10, 10], [5, 5], None), strict=True):
        for seed, value in enumerate(values):
            accuracy = [[value], [0.8]] if name == "FedAvg" else [[0.1], [value]]
            runs.append(cases.result(tiny(strategy=strategy, seed=seed), accuracy, up=up))
    comparison = compare(runs, Question(budgets={"bytes": 20.0}, correct="holm", baseline=baseline))
    other = "FedPer" if baseline is None else "local"
    p = {name: stats.ttest_rel(there[other], there[name]).pvalue for name in there if name != other}
    first, last = sorted(p, key=lambda name: p[name])
    found = {row.group.label: row.values["p_at_bytes"].mean for row in comparison.rows if row.group.label != other}
    assert found == pytest.approx({first: 2 * p[first], last: max(2 * p[first], p[last])})
    assert comparison.columns[-1].heading == f"p at 20 bytes vs {baseline or 'best'}, Holm"


def test_with_a_baseline_p_values_are_against_it(three_methods: list[Result]) -> None:
    comparison = compare(three_methods, Question(baseline="full", correct="holm"))
    p = [row.values["p"].mean for row in comparison.rows]
    assert np.isnan(p[1])
    assert comparison.columns[-1].heading == "p vs FedAvg, Holm"
    assert verdict_of(comparison).sentence.startswith("FedPer 80.0 against FedAvg 66.7: +13.3")


def test_the_p_value_is_of_the_two_methods_that_the_sentence_names(build: Build) -> None:
    runs, values = [], {0.1: [0.5, 0.6, 0.7], 0.2: [0.7, 0.6, 0.73]}
    for lr, own in values.items():
        runs += seeds_of(build, FULL, *([value] for value in own), local__lr=lr)
        better = [[value + 0.1 + gain] for value, gain in zip(own, (0.01, 0.0, 0.005), strict=True)]
        runs += seeds_of(build, BODY, *better, local__lr=lr)
    comparison = compare(runs, Question(by="local.lr", baseline="full", correct="holm"))
    own = stats.ttest_rel(*values.values()).pvalue
    # The table's p-values are of FedPer against FedAvg, and small.
    assert max(row.values["p"].mean for row in comparison.rows) < 0.01
    assert f"not distinguishable (p = {own:.3f}, uncorrected)" in verdict_of(comparison).sentence


def test_a_baseline_of_one_value_of_a_setting_is_compared_with_its_other_values(build: Build) -> None:
    runs = [
        build([value], strategy=each, local__lr=lr)
        for each, lr, value in ((FULL, 0.1, 0.5), (FULL, 0.2, 0.6), (BODY, 0.1, 0.7), (BODY, 0.2, 0.4))
    ]
    first, second = verdict_of(compare(runs, Question(baseline="local.lr=0.1"))).sentences
    assert first.startswith("lr=0.2 60.0 against lr=0.1 50.0 for FedAvg: +10.0")
    assert second.startswith("lr=0.1 70.0 against lr=0.2 40.0 for FedPer: +30.0")
    one = verdict_of(compare(runs[:2])).sentence
    assert one.startswith("lr=0.2 60.0 against lr=0.1 50.0: +10.0")


def test_many_settings_are_summed_up(build: Build) -> None:
    runs = []
    for alpha in (0.1, 0.2, 0.5, 1.0, 2.0):
        change = {"partition": {"scheme": "dirichlet", "alpha": alpha}}
        runs += [build([0.5], strategy=LOCAL, **change), build([alpha / 3], strategy=BODY, **change)]
    first, second = verdict_of(compare(runs)).sentences
    assert first == "Best of 5 settings: local in 4, FedPer in 1; distinguishable from what it is compared with in 0."
    assert second.startswith("The largest difference: local 50.0 against FedPer 3.3 at alpha 0.1: +46.7")


def test_runs_of_different_partitions_are_not_paired(build: Build) -> None:
    runs = [
        build([value], partition={"scheme": "dirichlet", "alpha": alpha}) for alpha, value in ((0.1, 0.4), (1.0, 0.6))
    ]
    assert verdict_of(compare(runs)).sentence == (
        "alpha=1.0 60.0 against alpha=0.1 40.0: not paired, as their partitions, seeds or other settings differ."
    )


def test_one_run_is_told_as_it_is(build: Build) -> None:
    assert verdict_of(compare([build([0.4, 0.6])])).sentence == "FedAvg 50.0 with 1 seed."
    assert verdict_of(compare(seeds_of(build, FULL, [0.5], [0.7]))).sentence == "FedAvg 60.0 ± 127.1 with 2 seeds."


def test_the_best_is_chosen_over_the_seeds_that_all_have_and_others_are_named(build: Build) -> None:
    # Over all its seeds, the mean of FedPer is the highest.
    runs = seeds_of(build, BODY, [0.4], [0.5], [0.9]) + seeds_of(build, LOCAL, [0.5], [0.6])
    comparison = compare(runs)
    assert verdict_of(comparison).sentence.startswith("local 55.0 against FedPer 45.0: +10.0 ± 0.0 with 2 seeds")
    assert any(light.startswith("warning: fewer seeds than others: local 2 of 3") for light in lights(comparison))
    [light] = [each for each in lights(compare(runs, Question(by="strategy"))) if "local 2 of 3" in each]
    assert "not over the same settings and seeds" in light


def test_what_weakens_an_answer_is_said(build: Build, tmp_path: Path, tiny: Callable[..., Config]) -> None:
    scores = [{"values": {"local.lr": lr}} for lr in (0.1, 0.2, 0.4)]
    choice = {"runs": "FedAvg", "chosen": {"local.lr": 0.4}, "scores": scores, "rounds": 1}
    unrelated = choice | {"runs": "FedProx", "for": ["00000000-s0"]}
    (tmp_path / "tuning.json").write_text(json.dumps({"choices": [choice, unrelated]}))
    small = cases.result(tiny(), [[0.5, 0.6]] * 2, test_examples=[5, 100], experiment=tmp_path)
    lost = (1, 1, "test", "personalised", "accuracy", None)
    short = cases.result(tiny(strategy=LOCAL), [[0.5, np.nan]], experiment=tmp_path, more=[lost])
    found = lights(compare([small, short]))
    for text in (
        "warning: values of clients missing: local 1; ",
        "warning: 1 seed: run at least 5",
        "warning: runs of different numbers of rounds: FedAvg 2, local 1; --budget",
        "warning: tiny test sets: 1 of the 2 clients has fewer than 10 test examples, the fewest 5, where one example",
        "warning: tuned to the edge of the grid in 1 of 1 choices: FedAvg: local.lr = 0.4 of 0.1, 0.2, 0.4; a wider",
        "note: tuned by the best round, but the last round is shown",
        "note: tuned in runs of 1 rounds, but shown are runs of 2",
    ):
        assert any(light.startswith(text) for light in found), (text, found)


def test_seeds_that_lack_a_setting_of_their_line_are_noticed(build: Build) -> None:
    runs = [build([0.5], strategy=FULL, seed=seed, local__lr=lr) for seed, lr in ((0, 0.1), (0, 0.2), (1, 0.1))]
    runs += [build([0.5], strategy=LOCAL, seed=seed, local__lr=0.1) for seed in (0, 1)]
    text = "warning: not every seed has the same settings: strategy.name=FedAvg; run"
    assert any(light.startswith(text) for light in lights(compare(runs, Question(by="strategy.name"))))
    assert not any("same settings" in light for light in lights(compare(runs)))


def test_a_difference_without_any_spread_is_no_certainty(build: Build) -> None:
    runs = (
        seeds_of(build, BODY, [0.9], [0.8]) + seeds_of(build, FULL, [0.8], [0.7]) + seeds_of(build, LOCAL, [0.9], [0.8])
    )
    text = "warning: the same difference from the best in each seed: FedAvg; few test examples"
    assert any(light.startswith(text) for light in lights(compare(runs)))


def test_tiny_test_sets_are_counted_among_the_clients_that_are_evaluated(tiny: Callable[..., Config]) -> None:
    earlier = (1, 2, "test", "personalised", "accuracy", 0.5)  # one that the last round did not evaluate
    accuracy = [[0.5, 0.6]] * 2
    run = cases.result(tiny(), accuracy, more=[earlier], test_examples=[5, 100, 3])
    assert any("1 of the 2 clients has fewer than 10" in light for light in lights(compare([run])))


def test_texts_hold_no_control_characters(build: Build) -> None:
    light = Light("note", "\x1b[31m")
    assert Verdict(("a\x07",), (light,)).lines == ["a\\x07", "note: \\x1b[31m"]
