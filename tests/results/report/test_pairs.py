"""Runs are compared with those of the same partition and seed, client by client."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedsim.config import Config
from fedsim.config.naming import changed_settings
from fedsim.errors import ConfigError
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.pairs import Baseline, reference
from fedsim.results.report.comparing.pivot import pivot_of
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.tables import comparison_table
from fedsim.results.report.comparing.verdict import verdict_of
from fedsim.results.result import Result
from tests.results.report import cases

Build = Callable[..., Result]
FULL, LOCAL = {"name": "full"}, {"name": "local"}
BODY, HEAD = ({"name": "layer_set", "shared": group} for group in ("body", "head"))
# Of three seeds, the clients' accuracies under a method and under the baseline.
OURS = [[0.5, 0.7, 0.9, 0.4], [0.6, 0.6, 0.8, 0.3], [0.9, 0.9, 0.9, 0.2]]
THEIRS = [[0.4, 0.7, 0.8, 0.5], [0.5, 0.5, 0.5, 0.5], [0.9, 0.8, 0.9, 0.1]]


@pytest.fixture
def paired(build: Build) -> tuple[list[Result], list[Result]]:
    """Return the runs of a method and those of the baseline, three seeds each."""
    ours, theirs = (
        [build(values, strategy=strategy, seed=seed) for seed, values in enumerate(table)]
        for strategy, table in ((BODY, OURS), (FULL, THEIRS))
    )
    return ours, theirs


def accuracy(result: Result) -> pd.Series:
    return result.by_client("personalised")


def test_the_difference_is_that_of_a_paired_t_test_over_the_seeds(paired: tuple[list[Result], list[Result]]) -> None:
    ours, theirs = paired
    # Given in any order: what is paired is a question of the seed.
    gain = Baseline("full", [*theirs[::-1], *ours]).gain(ours, accuracy)
    test = stats.ttest_rel(np.mean(OURS, axis=1), np.mean(THEIRS, axis=1)).confidence_interval(0.95)
    low, high = (gain.difference.mean + side * gain.difference.half_width for side in (-1, 1))
    assert (low, high) == pytest.approx((test.low, test.high), abs=1e-12)
    assert gain.seeds == 3


def test_clients_of_all_seeds_are_better_equal_or_worse(paired: tuple[list[Result], list[Result]]) -> None:
    ours, theirs = paired
    # Per seed, the clients that gain: 0 and 2; 0, 1 and 2; 1 and 3. Those that lose: 3; 3; none.
    ahead = Baseline("full", [*ours, *theirs]).gain(ours, accuracy)
    assert (ahead.better, ahead.equal, ahead.worse) == (7, 3, 2)
    behind = Baseline("layer_set", [*ours, *theirs]).gain(theirs, accuracy)
    assert (behind.better, behind.equal, behind.worse) == (2, 3, 7)


def test_the_means_are_those_of_the_seeds_that_are_paired(paired: tuple[list[Result], list[Result]]) -> None:
    ours, theirs = paired
    gain = Baseline("full", [*ours, *theirs[:2]]).gain(ours, accuracy)
    assert (gain.own, gain.other) == pytest.approx((np.mean(OURS[:2]), np.mean(THEIRS[:2])))
    assert gain.difference.mean == pytest.approx(gain.own - gain.other)


def test_by_strategy_methods_are_compared_over_all_else_with_seeds_as_units(build: Build) -> None:
    # Two step sizes: within each seed their runs are averaged before anything is compared.
    runs = [
        build(values, strategy=strategy, seed=seed, local={"lr": lr})
        for strategy, table in ((BODY, OURS), (HEAD, [*OURS[1:], OURS[0]]), (FULL, THEIRS))
        for lr, order in ((0.1, slice(None)), (0.3, slice(None, None, -1)))
        for seed, values in enumerate(table[order])
    ]
    comparison = compare(runs, Question(by="strategy", baseline="full"))
    assert [row.group.name for row in comparison.rows] == ["FedPer", "LG-FedAvg", "FedAvg"]
    found = comparison.rows[0].values["difference"]
    means = [np.mean([table, table[::-1]], axis=(0, 2)) for table in (OURS, THEIRS)]
    test = stats.ttest_rel(*means).confidence_interval(0.95)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((test.low, test.high))
    assert not any("same settings" in light.text for light in verdict_of(comparison).lights)
    with pytest.raises(ConfigError, match=r"--by 'strateg' is not a setting of these runs; did you mean 'strategy'\?$"):
        compare(runs, Question(by="strateg"))
    lights = verdict_of(compare(runs[3:], Question(by="strategy", baseline="full"))).lights
    assert any("not over the same settings and seeds" in each.text and "FedPer 3 of 6;" in each.text for each in lights)


def test_the_p_value_is_that_of_a_paired_t_test_over_the_seeds(paired: tuple[list[Result], list[Result]]) -> None:
    ours, theirs = paired
    gain = Baseline("full", [*ours, *theirs]).gain(ours, accuracy)
    assert gain.p == pytest.approx(stats.ttest_rel(np.mean(OURS, axis=1), np.mean(THEIRS, axis=1)).pvalue, abs=1e-12)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        *((name, "FedAvg") for name in ("FedAvg", "fed-avg", "full", "strategy.name=full", 'strategy.name="FedAvg"')),
        *((name, "FedPer") for name in ("FedPer", "fedper", "layer_set(shared=body)", "strategy.name=FedPer")),
        *(("LG-FedAvg", "LG-FedAvg(buffers=personal)"), ("lgfedavg", "LG-FedAvg(buffers=personal)")),
        ("layer_set", "layer_set"),
    ],
)
def test_a_baseline_is_found_by_every_name_and_shown_by_one(typed: str, shown: str, build: Build) -> None:
    results = [build([0.5, 0.7], strategy=each) for each in (FULL, BODY, HEAD | {"buffers": "personal"}, LOCAL)]
    if shown == "layer_set":  # the name of two of them
        del results[2]
        shown = "FedPer"
    baseline = Baseline(typed, results)
    assert baseline.name == shown
    assert shown in {baseline.partner(each).strategy for each in results}


def variants(tiny: Callable[..., Config], *, validated: bool = True) -> list[Result]:
    """Return two layer groups, of which test data favour the other one than validation data, and local training."""
    of = {("body", 0.1): (0.8, 0.5), ("head", 0.1): (0.7, 0.9), ("body", 10.0): (0.6, 0.9), ("head", 10.0): (0.65, 0.1)}
    runs = [
        cases.result(
            tiny(strategy={"name": "layer_set", "shared": shared}, seed=seed, partition__alpha=alpha),
            [[test + seed / 100]],
            validation=[[validation + seed / 100]] if validated else None,
        )
        for (shared, alpha), (validation, test) in of.items()
        for seed in (0, 1)
    ]
    more = [(seed, alpha) for alpha in (0.1, 10.0) for seed in (0, 1)]
    return runs + [
        cases.result(tiny(strategy=LOCAL, seed=seed, partition__alpha=alpha), [[0.6]], validation=[[0.99]])
        for seed, alpha in more
    ]


@pytest.mark.parametrize("name", ["best:layer_set", "best:FedPer, LG-FedAvg", "best:layer_set(shared=head),fedper"])
def test_the_best_of_several_baselines_is_that_on_validation_data_in_each_setting(
    name: str, tiny: Callable[..., Config]
) -> None:
    runs = variants(tiny)
    comparison = compare(runs, Question(baseline=name))
    baseline = Baseline(name, runs, comparison.question)
    chosen = {(run.config.partition.options["alpha"], baseline.partner(run).strategy) for run in runs}
    assert chosen == {(0.1, "FedPer"), (10.0, "LG-FedAvg")}
    note = f"{name} by validation data: FedPer at alpha 0.1, LG-FedAvg at alpha 10.0"
    assert note in comparison_table(comparison).notes
    differences = {row.group.name: row.values["difference"].mean for row in comparison.rows}
    assert differences["LG-FedAvg, partition.alpha=0.1"] == pytest.approx(0.9 - 0.5)
    assert differences["local, partition.alpha=10.0"] == pytest.approx(0.6 - 0.105)
    assert "LG-FedAvg 90.5 against FedPer 50.5 at alpha 0.1" in verdict_of(comparison).sentence
    validation = {row.group.name: row.values["validation"].mean for row in comparison.rows}
    assert validation["FedPer, partition.alpha=0.1"] == pytest.approx(0.805)


def test_by_strategy_the_best_is_compared_with_the_best_of_several_on_validation_data(
    tiny: Callable[..., Config],
) -> None:
    """By validation data it is FedPer at one alpha, which is also the best of all, and LG-FedAvg at the other."""
    question = Question(by="strategy", baseline="best:layer_set")
    runs = variants(tiny)
    assert "FedPer 70.5 against local 60.0" in verdict_of(compare(runs, question)).sentence
    runs += [
        cases.result(tiny(strategy=FULL, seed=seed, partition__alpha=alpha), [[0.94 + seed / 50]])
        for alpha in (0.1, 10.0)
        for seed in (0, 1)
    ]
    assert "FedAvg 95.0 against best:layer_set 30.5: +64.5 ± 6.4" in verdict_of(compare(runs, question)).sentence
    question = Question(by="strategy", baseline="fedper")
    assert "FedAvg 95.0 against FedPer 70.5" in verdict_of(compare(runs, question)).sentence


def test_a_seed_that_one_method_lacks_does_not_decide_which_is_the_best(tiny: Callable[..., Config]) -> None:
    runs = [run for run in variants(tiny)[:4] if (run.strategy, run.config.seed) != ("LG-FedAvg", 1)]
    lucky = cases.result(runs[-1].config.model_copy(update={"seed": 5}), [[0.5]], validation=[[1.0]])
    [first, *_] = Baseline("best:layer_set", [*runs, lucky])._partners.values()
    assert first.strategy == "FedPer"


def test_the_best_of_several_needs_validation_data(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"'best:layer_set': .* have no values on validation data.*name one method"):
        compare(variants(tiny, validated=False), Question(baseline="best:layer_set"))
    for name in ("best:", "best:FedPer,"):
        with pytest.raises(ConfigError, match=f"--baseline '{name}' must have a method's name after best: and each"):
            compare(variants(tiny), Question(baseline=name))


def test_averaging_all_layers_is_a_reference_unless_it_is_the_baseline(build: Build) -> None:
    results = [build([0.5, 0.7], strategy=BODY), build([0.4, 0.8], strategy={"name": "fedavg"})]
    assert {column.key: column.heading for column in compare(results).columns}["gain_full"] == "> / = / < FedAvg"
    asked = [column.key for column in compare(results, Question(baseline="FedAvg")).columns]
    assert "gain_baseline" in asked
    assert "gain_full" not in asked


def test_of_a_loss_less_is_more(paired: tuple[list[Result], list[Result]]) -> None:
    ours, theirs = paired
    gain = Baseline("full", [*ours, *theirs]).gain(
        ours, lambda result: result.by_client("personalised", "loss"), higher_is_better=False
    )
    assert (gain.better, gain.equal, gain.worse) == (7, 3, 2)
    assert gain.difference.mean == pytest.approx(np.mean(THEIRS) - np.mean(OURS))


def test_clients_are_paired_by_their_index_and_those_that_one_run_lacks_are_left_out(build: Build) -> None:
    ours = build([np.nan, 0.5, 0.5], strategy=BODY)
    theirs = build([0.9, 0.4, 0.6], strategy=FULL)
    gain = Baseline("full", [ours, theirs]).gain([ours], accuracy)
    assert (gain.better, gain.worse, gain.difference.mean) == (1, 1, pytest.approx(0))


def test_the_baseline_itself_has_no_gain(paired: tuple[list[Result], list[Result]]) -> None:
    ours, theirs = paired
    gain = Baseline("full", [*ours, *theirs]).gain(theirs, accuracy)
    assert gain.seeds == 0
    assert np.isnan(gain.difference.mean)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"partition": {"scheme": "dirichlet", "alpha": 5.0}},
        {"partition__validation": 0.2},
        {"local__epochs": 2},
        {"rounds": 3},
        {"clients": 5},
    ],
)
def test_runs_that_differ_in_more_than_their_strategy_are_no_pair(build: Build, changes: dict[str, Any]) -> None:
    full, other = build([0.5], strategy=FULL), build([0.5], strategy=BODY, **changes)
    assert Baseline("full", [full, other]).partner(other) is None


def test_runs_that_differ_in_their_strategy_and_in_what_changes_nothing_are_a_pair(build: Build) -> None:
    full = build([0.5], strategy=FULL, engine__workers=3, checkpoint_every=7)
    other = build([0.5], strategy={**BODY, "precision": "float32"})
    assert Baseline("full", [full, other]).partner(other) is full


def test_a_setting_and_its_value_are_a_baseline_for_runs_of_the_same_strategy(build: Build) -> None:
    runs = [build([0.5], strategy=each, local__lr=lr) for each in (FULL, BODY) for lr in (0.1, 0.2)]
    baseline = Baseline("local.lr=0.2", runs)
    assert [runs.index(baseline.partner(run)) for run in runs] == [1, 1, 3, 3]
    with pytest.raises(ConfigError, match=r"matches both .* name one of them"):
        Baseline("strategy.name=layer_set", [*runs, build([0.5], strategy=HEAD, local__lr=0.1)])


def test_own_models_of_two_files_are_compared_by_their_names(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = "def net(width: int = 8):\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, width))\n"
    for name in ("narrow_net", "wide_net"):
        (tmp_path / f"{name}.py").write_text(f"import torch\n\n{code}# {name}\n")
    models = ({"name": "narrow_net:net"}, {"name": "wide_net:net", "width": 16})
    runs = [
        build([0.5 + 0.1 * place + 0.01 * seed], strategy=strategy, model=model, seed=seed)
        for place, model in enumerate(models)
        for strategy in (FULL, BODY)
        for seed in range(2)
    ]
    for run in runs:
        vars(run)["named_by"] = changed_settings(run.config)
    assert list(compare(runs, Question()).rows[0].group.settings) == ["model.name", "model.width"]
    comparison = compare(runs, Question(baseline="model.name=narrow_net:net"))
    assert verdict_of(comparison).sentences[0].startswith("model=wide_net:net, width=16 60.5 against model=narrow")


def test_a_method_before_and_after_its_source_was_changed_is_two_methods_next_to_the_others(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "changed_method.py").write_text("from fedsim import Strategy\nclass Own(Strategy): pass\n")
    runs = [build([0.5 + 0.01 * seed], strategy=FULL, seed=seed) for seed in range(2)]
    for accuracy, source in ((0.6, "a1"), (0.7, "b2")):
        for seed in range(2):
            run = build([accuracy + 0.02 * seed], strategy={"name": "changed_method:Own"}, seed=seed)
            changed = changed_settings(run.config)
            run = replace(run, folder=type(run.folder)(tmp_path / f"{source:0>8}-s{seed}"))
            vars(run)["named_by"] = changed | {"strategy": changed["strategy"] | {"source": source}}
            runs.append(run)
    names = ["changed_method:Own, strategy.source=a1", "changed_method:Own, strategy.source=b2"]
    pivot = pivot_of(compare(runs, Question()))
    assert (pivot.methods, pivot.settings) == (("FedAvg", *names), ())
    assert [cell.is_best for cell in pivot.cells.values()] == [False, False, True]
    [sentence] = verdict_of(compare(runs, Question())).sentences[:1]
    assert sentence.startswith("changed_method:Own, source=b2 71.0 against FedAvg 50.5: +20.5")
    baseline = Baseline("strategy.source=a1", runs)
    assert [runs.index(baseline.partner(run)) for run in runs] == [2, 3] * 3
    with pytest.raises(ConfigError, match=r'strategy\.source is "a1" or "b2"$'):
        Baseline("strategy.source=c3", runs)


def test_a_setting_that_was_tuned_may_differ_in_a_pair(build: Build, tmp_path: Path) -> None:
    full, other = build([0.5], strategy=FULL, local__lr=0.2), build([0.5], strategy=BODY, local__lr=0.4)
    assert Baseline("full", [full, other]).partner(other) is None
    (tmp_path / "tuning.json").write_text(json.dumps({"choices": [{"chosen": {"local.lr": 0.2}}, {"chosen": None}]}))
    assert Baseline("full", [full, other]).partner(other) is full
    # Where a run with the same value is there too, it is the partner.
    same = build([0.5], strategy=FULL, local__lr=0.4)
    assert Baseline("full", [full, other, same]).partner(other) is same


def test_a_damaged_record_of_tuning_is_named(build: Build, tmp_path: Path) -> None:
    (tmp_path / "tuning.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tuning\.json is damaged"):
        Baseline("full", [build([0.5], strategy=FULL)])


def test_what_is_no_run_is_no_baseline(build: Build) -> None:
    runs = [build([0.5], strategy=FULL), build([0.5], strategy=LOCAL)]
    wrong = {
        "fill": "is not among these runs; did you mean 'full'? the methods are FedAvg, local; or give SETTING=VALUE",
        "local.lr=0.3": "is not among these runs; local.lr is 0.1",
        "local.rl=0.3": "'local.rl' is not a setting of these runs; did you mean 'local.lr'?",
        "partition.alpha = 3": "is not among these runs; partition.alpha is 0.5",
    }
    for name, message in wrong.items():
        with pytest.raises(ConfigError, match=re.escape(message)):
            Baseline(name, runs)
    assert reference("layer_set", runs) is None


def texts_of(runs: list[Result], baseline: str | None) -> list[str]:
    return [light.text for light in verdict_of(compare(runs, Question(baseline=baseline))).lights]


def test_a_baseline_without_a_pair_is_told_of_if_it_was_asked_for(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [build([0.5], strategy=FULL), build([0.5], strategy=LOCAL, rounds=5)]
    unpaired = "no run has the partition, seed and other settings of a run of the baseline full"
    assert [text.startswith(unpaired) for text in texts_of(runs, "full")].count(True) == 1
    assert not any("no run has" in text for text in texts_of(runs, None))
    assert not caplog.text


def test_a_reference_that_stands_for_two_runs_is_told_of_and_not_shown(build: Build, tmp_path: Path) -> None:
    (tmp_path / "tuning.json").write_text(json.dumps({"choices": [{"chosen": {"local.lr": 0.2}}]}))
    runs = [build([0.5], strategy=FULL, local__lr=lr) for lr in (0.2, 0.3)]
    runs += [build([0.5], strategy=LOCAL, local__lr=0.4)]
    assert reference("full", runs) is None
    [text] = [text for text in texts_of(runs, None) if "FedAvg, of which two runs match another" in text]
    assert "--baseline SETTING=VALUE" in text


def test_the_same_run_in_two_folders_is_named(build: Build) -> None:
    runs = [build([0.5], strategy=FULL), build([0.5], strategy=FULL), build([0.5], strategy=LOCAL)]
    [text] = [text for text in texts_of(runs, None) if "the same run several times" in text]
    assert text.count(runs[0].folder.path.name) == 2
