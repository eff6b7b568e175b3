"""What an experiment expects is measured from its runs' records and tested."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import tomli_w
from pydantic import ValidationError

from fedsim.config import Config, read_toml
from fedsim.config.choices import resolve
from fedsim.config.expectation import Expectation
from fedsim.config.naming import run_name
from fedsim.errors import ConfigError
from fedsim.results.check.bounds import Bounds, of_ratio
from fedsim.results.check.check import check
from fedsim.results.check.settings import matches
from fedsim.results.result import Result
from strategies import NAMES
from tests.conftest import TINY, Command

FULL = {"barrier": "loss_mean_ends", "above": 0.0}
PRODUCTS = {"measure": "products", "column": "aggregation_error", "above": 0.0}
MOVED = {"measure": "matching", "column": "moved", "above": 0.0}


def value_of(results: list[Result], **settings: Any) -> float:
    [checked] = check(results, [Expectation.model_validate(settings)])
    return checked.value


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.8),
        ({"group": "layers"}, 0.2 / 3),
        ({"group": "layers", "reduce": "max"}, 0.3),
        ({"group": "fc*", "reduce": "min"}, -0.2),
        ({"group": "shallow:*"}, 0.5),
        ({"against": "pairs"}, 2.0),
        ({"against": "pairs", "t": 0.25}, 1.0),
        ({"round": 1}, 9.0),
        ({"round": "all", "reduce": "max"}, 9.0),
        ({"round": "all", "reduce": "min"}, 0.8),
        ({"group": "layers", "reduce": "max", "of": {"group": "full"}}, -0.5),
        ({"group": "layers", "reduce": "max", "of": {"group": "full"}, "compare": "ratio"}, 0.3 / 0.8),
        ({"of": {"against": "pairs", "t": 0.25}}, -0.2),
        ({"of": {"round": 1}}, 0.8 - 9.0),
    ],
)
def test_a_barrier_is_that_of_its_rows_by_hand(
    result: Callable[..., Result], settings: dict[str, Any], expected: float
) -> None:
    assert value_of([result()], **FULL | settings) == pytest.approx(expected)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_layer_that_is_also_listed_by_name_is_one_of_the_layers(
    result: Callable[..., Result], tmp_path: Path, *, is_old: bool
) -> None:
    run = result(str(tmp_path), barriers__groups=["layers", "full", "fc1", "all - fc1"])
    of_expression = pd.DataFrame([("all - fc1", 0, -1, 1.0, 9.0, 2)], columns=run.barriers.columns)
    run = replace(run, barriers=pd.concat([run.barriers, of_expression]))
    if is_old:
        run = replace(run, communication=pd.DataFrame({"layer": ["fc1", "fc2"]}))
    else:
        run.folder.path.mkdir()
        run.folder.model.write_text(json.dumps({"layers": ["fc1", "fc2"]}))
    assert value_of([run], **FULL | {"group": "layers"}) == pytest.approx((0.1 + 0.3 - 0.2) / 3)


def test_a_metric_is_a_mean_over_clients_or_the_servers(result: Callable[..., Result]) -> None:
    one = result(accuracy=(0.1, 0.2, 0.6))
    accuracy = {"metric": "accuracy", "above": 0.0}
    assert value_of([one], **accuracy) == pytest.approx(0.3)
    assert value_of([one], **accuracy, reduce="min") == 0.1
    assert value_of([one], **accuracy, model="global") == 0.75
    assert value_of([one], **accuracy, model="global", server=True) == 0.25


@pytest.fixture
def tables(result: Callable[..., Result], tmp_path: Path) -> Result:
    """Write made-up tables of a run beside its barriers, which it has after matching too."""
    run = result(str(tmp_path))
    found = {
        "connectivity": pd.DataFrame(
            [
                ("zeta", 0, -1, 0.5, 0.1, "none"),
                ("fc", 0, -1, 0.5, 0.3, "none"),
                ("fc", -1, -1, 1.0, 0.9, "none"),
                ("fc", 0, 1, 0.5, 0.5, "none"),
                ("fc", 0, 1, 0.25, 0.6, "none"),
                ("fc", 0, -1, 0.5, 0.02, "weights"),
            ],
            columns=["layer", "base", "other", "t", "ratio", "matching"],
        ),
        "cka": pd.DataFrame({"layer": ["zeta", "fc"], "base": 0, "other": 1, "cka": [0.9, 0.5], "matching": "none"}),
        "spectra": pd.DataFrame(
            {
                "layer": "fc",
                "base": [-1, 0, 1],
                "stable_rank": [2.0, 3.0, 5.0],
                "values": [[1.0]] * 3,
                "matching": "none",
            }
        ),
        "matching": pd.DataFrame({"order": "fc", "base": [3, 0], "moved": [0.0, 0.5], "matching": "weights"}),
        "products": pd.DataFrame({"layer": ["zeta", "fc"], "aggregation_error": [0.1, 0.2]}),
        "distances": pd.DataFrame({"group": ["full", "fc"], "base": 0, "other": -1, "distance": [7.0, 4.0]}),
        "robustness": pd.DataFrame(
            {"group": "full", "base": 0, "other": -1, "t": 1.0, "direction": ["average", "random"], "loss": [1.0, 9.0]}
        ),
        "interaction": pd.DataFrame(
            {"first": ["zeta", ""], "second": ["fc", ""], "base": 0, "other": -1, "t": 1.0, "gap": [0.1, 0.4]}
        ),
    }
    for name, table in found.items():
        (run.folder.path / name).mkdir(parents=True)
        table.to_parquet(run.folder.path / name / "round-00004.parquet")
    run.barriers["matching"] = "none"
    run.barriers.loc[run.barriers["base"] == 1, "matching"] = "weights"
    return run


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"measure": "connectivity", "column": "ratio"}, 0.2),
        ({"measure": "connectivity", "column": "ratio", "group": "layers", "reduce": "max"}, 0.3),
        ({"measure": "connectivity", "column": "ratio", "group": "z*"}, 0.1),
        ({"measure": "connectivity", "column": "ratio", "against": "pairs"}, 0.5),
        ({"measure": "connectivity", "column": "ratio", "against": "pairs", "t": 0.25}, 0.6),
        ({"measure": "connectivity", "column": "ratio", "model": "average"}, 0.9),
        ({"measure": "connectivity", "column": "ratio", "matching": "weights"}, 0.02),
        ({"measure": "connectivity", "column": "ratio", "group": "fc", "of": {"matching": "weights"}}, 0.28),
        ({"measure": "cka", "column": "cka"}, 0.7),
        ({"measure": "cka", "column": "cka", "matching": "weights"}, 0.7),
        ({"measure": "spectra", "column": "stable_rank"}, 4.0),
        ({"measure": "spectra", "column": "stable_rank", "matching": "weights"}, 4.0),
        ({"measure": "spectra", "column": "stable_rank", "model": "average"}, 2.0),
        ({"measure": "spectra", "column": "stable_rank", "of": {"model": "average"}, "compare": "ratio"}, 2.0),
        ({"measure": "matching", "column": "moved", "matching": "weights", "reduce": "min"}, 0.5),
        ({"measure": "products", "column": "aggregation_error", "reduce": "max"}, 0.2),
        ({"measure": "distances", "column": "distance"}, 7.0),
        ({"measure": "distances", "column": "distance", "group": "layers"}, 4.0),
        ({"measure": "robustness", "column": "loss"}, 1.0),
        ({"measure": "interaction", "column": "gap"}, 0.4),
        ({"measure": "interaction", "column": "gap", "group": "layers"}, 0.1),
        ({"barrier": "loss_mean_ends", "group": "fc1"}, 0.1),
        ({"barrier": "loss_mean_ends", "group": "fc1", "matching": "weights"}, 0.3),
        ({"barrier": "loss_mean_ends", "group": "fc1", "of": {"matching": "weights"}}, -0.2),
    ],
)
def test_a_value_of_a_table_is_that_of_its_rows_by_hand(
    tables: Result, settings: dict[str, Any], expected: float
) -> None:
    assert value_of([tables], **{"above": 0.0} | settings) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"column": "ratios"}, "the table 'connectivity' has no column 'ratios'; it has: ratio$"),
        ({"column": "t"}, "the table 'connectivity' has no column 't'; it has: ratio$"),
        ({"measure": "spectra", "column": "values"}, "has no column 'values'; it has: stable_rank$"),
        ({"measure": "stitching"}, "the table 'stitching' has no rows; measure it"),
        ({"group": "fc9"}, "has no mean ratio of connectivity, fc9, round last; measure it"),
        ({"matching": "activations"}, "has no mean ratio of connectivity after matching by activations, round last"),
        ({"model": "average", "group": "fc9"}, "has no mean ratio of connectivity of the average, fc9, round last"),
    ],
)
def test_what_is_not_in_a_table_is_named(tables: Result, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        value_of([tables], **{"measure": "connectivity", "column": "ratio", "above": 0.0} | settings)
    assert "\n" not in str(caught.value)


def test_products_cannot_be_asked_for(result: Callable[..., Result]) -> None:
    with pytest.raises(
        ConfigError, match="'products' has no rows; only LoRA has them, of layers whose trained factors"
    ):
        value_of([result()], **PRODUCTS)


def test_the_mean_over_the_seeds_is_compared_and_ratios_are_of_means(result: Callable[..., Result]) -> None:
    seeds = [result(seed=0), result(scale=3.0, seed=1)]
    assert value_of(seeds, **FULL) == pytest.approx(1.6)
    settings = {"group": "fc1", "against": "pairs", "of": {"group": "full"}, "compare": "ratio"}
    assert value_of(seeds, **FULL | settings) == pytest.approx(2.5)


def test_a_run_is_compared_with_the_one_that_has_all_else_and_the_seed(result: Callable[..., Result]) -> None:
    body, full = {"name": "layer_set", "shared": "body"}, {"name": "full"}
    accuracies = {("body", 0, 0.1): 0.7, ("body", 1, 0.1): 0.6, ("body", 0, 0.2): 0.9}
    accuracies |= {("full", 0, 0.1): 0.5, ("full", 1, 0.1): 0.3, ("full", 0, 0.2): 0.8}
    results = [
        result(accuracy=(value,), strategy=body if name == "body" else full, seed=seed, local__lr=lr)
        for (name, seed, lr), value in accuracies.items()
    ]
    expectation = Expectation.model_validate(
        {
            "metric": "accuracy",
            "where": {"strategy.name": ["layer_set", "layer_cycle"]},
            "of": {"strategy.name": "full"},
            "within": 0.15,
        }
    )
    checks = list(check(results, [expectation]))
    assert [(each.seeds, round(each.value, 6)) for each in checks] == [(2, 0.25), (1, 0.1)]
    # The differences 0.2 and 0.3 have a wide interval, and one seed has none.
    assert [each.verdict for each in checks] == ["undecided", "undecided"]
    assert [each.verdict for each in check(results, [expectation], means=True)] == ["FAILED", "ok"]
    assert [each.runs for each in checks] == [f"FedPer, local.lr={lr}" for lr in (0.1, 0.2)]
    with pytest.raises(ConfigError, match=r"is to be compared with a run that has \{'strategy.name': 'full'\}"):
        list(check([each for each in results if each.config.seed == 1][:1], [expectation]))


def test_a_run_is_not_compared_with_itself(result: Callable[..., Result]) -> None:
    full, local = ({"name": name} for name in ("full", "local"))
    runs = [result(accuracy=(0.7,), strategy=full), result(accuracy=(0.4,), strategy=local)]
    wanted = {"metric": "accuracy", "of": {"strategy.name": "local"}, "above": 0.0}
    assert value_of(runs, **wanted) == pytest.approx(0.3)
    with pytest.raises(ConfigError, match=r'of = \{ strategy.name = "local" \} names the same runs that are compared'):
        value_of(runs[1:], **wanted)
    # With another value of the same run it is compared.
    values = [
        each.value for each in check(runs, [Expectation.model_validate(FULL | {"of": wanted["of"] | {"round": 1}})])
    ]
    assert values == pytest.approx([0.8 - 9.0] * 2)
    seeds = [result(seed=seed, scale=scale) for seed, scale in ((0, 3.0), (1, 1.0))]
    expectation = Expectation.model_validate(FULL | {"of": {"seed": 1}, "compare": "ratio"})
    [found] = check(seeds, [expectation])
    assert (found.seeds, found.value) == (1, pytest.approx(3.0))


@pytest.mark.parametrize(
    ("accuracies", "rule", "verdict"),
    [
        # The intervals are 0.6 ± 0.248 and 0.6 ± 0.024.
        ((0.5, 0.6, 0.7), {"above": 0.3}, "ok"),
        ((0.5, 0.6, 0.7), {"above": 0.4}, "undecided"),
        ((0.5, 0.6, 0.7), {"above": 0.8}, "undecided"),
        ((0.5, 0.6, 0.7), {"above": 0.9}, "FAILED"),
        ((0.59, 0.6, 0.61), {"above": 0.5, "below": 0.7}, "ok"),
        ((0.59, 0.6, 0.61), {"within": 0.61}, "undecided"),
        ((0.59, 0.6, 0.61), {"within": 0.5}, "FAILED"),
        ((0.59, 0.6, 0.61), {"above": 0.605, "below": 0.61}, "undecided"),
        ((0.6, 0.6, 0.6), {"above": 0.61}, "FAILED"),  # without a spread, any difference decides
        ((0.6,), {"above": 0.1}, "undecided"),
        ((0.6, np.nan), {"above": 0.1}, "FAILED"),
    ],
)
def test_the_whole_interval_over_the_seeds_decides(
    result: Callable[..., Result], accuracies: tuple[float, ...], rule: dict[str, float], verdict: str
) -> None:
    results = [result(seed=seed, accuracy=(value,)) for seed, value in enumerate(accuracies)]
    [found] = check(results, [Expectation.model_validate({"metric": "accuracy"} | rule)])
    assert (found.verdict, found.seeds) == (verdict, len(accuracies))
    if len(set(accuracies)) == 3:
        ends = scipy.stats.t.interval(0.95, 2, np.mean(accuracies), scipy.stats.sem(accuracies))
        assert (found.bounds.low, found.bounds.high) == pytest.approx(ends)


def test_what_is_compared_is_paired_by_seed(result: Callable[..., Result]) -> None:
    # Both accuracies vary by 0.4 over the seeds, and their difference by 0.02.
    full, local = ({"name": name} for name in ("full", "local"))
    ours, theirs = (0.5, 0.7, 0.9), (0.39, 0.6, 0.81)
    results = [
        result(strategy=strategy, seed=seed, accuracy=(value,))
        for strategy, values in ((full, ours), (local, theirs))
        for seed, value in enumerate(values)
    ]
    wanted = {"metric": "accuracy", "where": {"strategy.name": "full"}, "of": {"strategy.name": "local"}, "above": 0.05}
    [found] = check(results, [Expectation.model_validate(wanted)])
    test = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.bounds.low, found.bounds.high) == pytest.approx((test.low, test.high))
    assert str(found).startswith(f"ok           0.1000 [{test.low:.4f}, {test.high:.4f}]     above 0.05: FedAvg: mean")
    # A run that is there twice is no further seed.
    [again] = check([*results, result("copy", strategy=full, seed=0, accuracy=(0.5,))], [found.expectation])
    assert (again.seeds, again.bounds) == (3, found.bounds)


def test_several_runs_to_compare_with_are_refused_and_tuned_settings_may_differ(
    result: Callable[..., Result], tmp_path: Path
) -> None:
    prox = {"strategy.name": "fedprox"}
    wanted = {
        "metric": "accuracy",
        "where": {"strategy.name": "full"},
        "of": {"strategy.name": "fedprox"},
        "above": 0.0,
    }
    full = result(str(tmp_path), accuracy=(0.7,), strategy={"name": "full"}, local__lr=0.1)
    weak, strong = (
        result(str(tmp_path), accuracy=(mu,), strategy={"name": "fedprox", "mu": mu}, local__lr=lr)
        for mu, lr in ((0.2, 0.3), (0.5, 0.3))
    )
    (tmp_path / "tuning.json").write_text(json.dumps({"choices": [{"chosen": {"local.lr": 0.3}}]}))
    assert value_of([full, strong], **wanted) == pytest.approx(0.2)
    text = (
        r'of = \{ strategy.name = "fedprox" \} matches several runs of seed 0, such as those of FedProx\(mu=0.2\) and'
    )
    with pytest.raises(ConfigError, match=text):
        value_of([full, weak, strong], **wanted)
    assert value_of([full, weak, strong], **wanted | {"of": prox | {"strategy.mu": 0.2}}) == pytest.approx(0.5)
    (tmp_path / "tuning.json").unlink()
    with pytest.raises(ConfigError, match="is to be compared with a run that has"):
        value_of([full, strong], **wanted)


@pytest.mark.parametrize("seed", range(4))
def test_a_ratio_is_in_its_interval_just_if_a_paired_test_does_not_refuse_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    references = rng.normal(2, 0.3, 4)
    values = 0.7 * references + rng.normal(0, 0.2, 4)
    found = of_ratio(values, references)
    assert found.value == pytest.approx(values.mean() / references.mean())
    for end in (found.low, found.high):
        assert scipy.stats.ttest_rel(values, end * references).pvalue == pytest.approx(0.05)
    assert found.low < found.value < found.high


def test_a_ratio_to_what_may_be_nothing_is_not_bounded() -> None:
    assert of_ratio([1.0, 1.1, 0.9], [0.5, -0.4, 0.2]) == Bounds(pytest.approx(10), -np.inf, np.inf)
    assert np.isnan(of_ratio([1.0, 1.0], [0.0, 0.0]).value)
    assert of_ratio([3.0, 3.0], [2.0, 2.0]) == Bounds(1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("rule", "holding", "breaking"),
    [
        ({"above": 0.5}, (0.5, 2.0), (0.49, -1.0)),
        ({"below": 0.5}, (0.5, -9.0), (0.51,)),
        ({"within": 0.5}, (-0.5, 0.5), (-0.6, 0.6)),
        ({"above": 0.1, "below": 0.2}, (0.1, 0.2), (0.05, 0.3)),
    ],
)
def test_a_rule_holds_up_to_its_bounds_and_never_for_nan(
    rule: dict[str, float], holding: tuple[float, ...], breaking: tuple[float, ...]
) -> None:
    expectation = Expectation.model_validate({"metric": "loss"} | rule)
    assert all(expectation.holds(value) for value in holding)
    assert not any(expectation.holds(value) for value in (*breaking, np.nan))


def test_what_is_expected_names_no_run_and_comes_back_from_its_folder(tiny: Callable[..., Config]) -> None:
    expected = [FULL | {"of": {"strategy.name": "full", "group": "layers"}, "t": 0.5}, {"metric": "loss", "below": 1}]
    config = tiny(expect=expected)
    assert run_name(config) == run_name(tiny())
    assert Config.parse(tomllib.loads(config.to_toml()), "config.toml").expect == config.expect
    assert len(config.expect) == 2
    assert "expect" not in tiny().to_toml()


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"above": 1.0}, "must have either barrier or metric"),
        ({"barrier": "loss_chord", "metric": "loss", "above": 1.0}, "must have either barrier or metric"),
        ({"barrier": "loss_chord", "measure": "cka", "column": "cka", "above": 1.0}, "must have either barrier or"),
        ({"measure": "cka", "above": 1.0}, "measure and column go together"),
        ({"metric": "loss", "column": "cka", "above": 1.0}, "measure and column go together"),
        ({"measure": "ck", "column": "cka", "above": 1.0}, 'expect.0.measure = "ck"'),
        (FULL | {"matching": "weight"}, "expect.0.matching = \"weight\": .*'weights'"),
        ({"metric": "loss"}, "must have a rule: above, below or within"),
        (FULL | {"model": "global"}, "model = 'global' has no effect on a barrier, only on a metric or measure; leave"),
        (FULL | {"split": "fgsm:0.1"}, "split = 'fgsm:0.1' has no effect on a barrier, only on a metric; leave it out"),
        ({"metric": "loss", "below": 1, "matching": "weights"}, "matching = 'weights' has no effect on a metric"),
        ({"metric": "loss", "below": 1, "t": 0.5}, "t = 0.5 has no effect on a metric, only on a barrier or measure"),
        (
            MOVED | {"matching": "weights", "model": "global"},
            "model = 'global' has no effect on a measure; use 'average'",
        ),
        (PRODUCTS | {"against": "pairs"}, "against = 'pairs' has no effect on measure = 'products'; leave it out"),
        (PRODUCTS | {"of": {"data": "train"}}, "data = 'train' has no effect on measure = 'products'; leave it out"),
        (PRODUCTS | {"model": "average"}, "model = 'average' has no effect on measure = 'products'; leave it out"),
        (MOVED, "measure = 'matching' needs a matching that is not 'none'"),
        (FULL | {"compare": "ratio"}, "compare = 'ratio' needs of"),
        (FULL | {"abov": 1.0}, "unknown key 'expect.0.abov'; did you mean 'above'"),
        (FULL | {"round": "first"}, "expect.0.round"),
        (FULL | {"below": -1.0}, "above 0 and below -1 cannot be met by any value; change a bound"),
        ({"metric": "loss", "above": 2.0, "within": 1.0}, r"above 2 and within \+- 1 cannot be met by any value"),
        (FULL | {"within": -1.0}, "expect.0.within = -1.0: .*greater than 0"),
    ],
)
def test_an_expectation_that_says_nothing_is_a_mistake(expected: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Config.parse(TINY | {"expect": [expected]}, "tiny")
    assert "\n" not in str(caught.value)


def test_a_reference_that_cannot_be_measured_is_found_when_it_is_read() -> None:
    with pytest.raises(ValidationError, match="reduce"):
        Expectation.model_validate(FULL | {"of": {"reduce": "median"}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group": "fc3"}, "has no mean loss_mean_ends of fc3, round last; measure it"),
        ({"round": 3}, "round 3; measure it"),
        ({"barrier": "loss_chord"}, "has no barrier 'loss_chord'; it has: loss_mean_ends"),
        ({"where": {"local.lr": 7.0}}, "no run has an expectation"),
    ],
)
def test_what_was_not_measured_is_named(result: Callable[..., Result], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        value_of([result()], **FULL | settings)


def test_a_run_that_is_not_done_is_not_checked(result: Callable[..., Result]) -> None:
    with pytest.raises(ConfigError, match=r"is not finished \(round 2 of 3\); resume it with 'fedsim run' first"):
        value_of([result(rounds=3)], **FULL)


@pytest.mark.slow
def test_the_command_prints_a_line_each_and_exits_with_1_where_one_fails(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fedsim(*arguments: str) -> tuple[int, list[str]]:
        code, out, err = command(*arguments)
        return code, (out + err).splitlines()

    monkeypatch.chdir(tmp_path)
    accuracy = {"metric": "accuracy", "above": 0.0}
    expected = [accuracy, FULL | {"above": -9.0, "group": "fc1"}]
    for name, more in (("good", []), ("bad", [accuracy | {"above": 2.0}])):
        Path(f"{name}.toml").write_text(tomli_w.dumps(TINY | {"expect": expected + more}))
    assert read_toml(Path("good.toml"))["expect"] == expected
    assert fedsim("run", "good.toml")[0] == 0
    code, lines = fedsim("check", "runs/good")
    assert code == 0
    assert [line[:9].strip() for line in lines[:-1]] == ["undecided", "undecided"]
    assert lines[1].endswith("above -9: mean loss_mean_ends of fc1, round last (1 seed)")
    assert lines[-1].startswith("0 ok, 0 FAILED, 2 undecided; one seed has no interval: run more, or decide by")
    assert fedsim("check", "runs/good", "--strict")[0] == 1
    assert fedsim("check", "runs/good", "--means", "--strict")[0] == 0
    code, lines = fedsim("check", "runs/good", "--expect", "bad.toml", "--means")
    assert code == 1
    assert [line[:9].strip() for line in lines] == ["ok", "ok", "FAILED"]
    Path("none.toml").write_text(tomli_w.dumps(TINY))
    code, lines = fedsim("check", "runs/good", "--expect", "none.toml")
    assert code == 2
    assert "no run has an expectation" in lines[0]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"share": "both"}, {"FedIT"}),
        ({"share": "both", "head": "personal"}, {"FedIT"}),
        ({"share": "A"}, set()),
        ({"share": "A", "head": "personal"}, {"FedSA-LoRA"}),
        ({"share": "B"}, {"FFA-LoRA"}),
        ({"share": "alternate"}, {"RoLoRA"}),
    ],
)
def test_a_name_of_an_expectation_means_the_options_that_it_stands_for(
    options: dict[str, str], names: set[str], tiny: Callable[..., Config]
) -> None:
    config = tiny(strategy={"name": "lora", **options}, model={"adapter": {"kind": "lora"}})
    of_lora = {name for name, named in NAMES.items() if named.entry == "lora"}
    assert {name for name in of_lora if matches(config, {"strategy.name": name})} == names
    assert matches(config, {"strategy.name": "lora"})


@pytest.mark.parametrize(
    ("setting", "value", "is_meant"),
    [
        ("strategy.name", "FedPer", True),
        ("strategy.name", ["full", "fed-per"], True),
        ("strategy.name", "layer_set", True),
        ("strategy.name", ["LG-FedAvg", "full"], False),
        ("partition.scheme", "IID", True),
        ("strategy.shared", "Body", False),
    ],
)
def test_a_name_of_an_expectation_may_be_that_of_a_paper(
    setting: str, value: Any, is_meant: bool, tiny: Callable[..., Config]
) -> None:
    config = tiny(partition={"scheme": "iid"}, strategy={"name": "layer_set", "shared": "body"})
    assert matches(config, {setting: value}) == is_meant


@pytest.mark.parametrize(("value", "is_meant"), [([8], True), ([[8], [16]], True), ([16], False), (8, False)])
def test_a_list_of_an_expectation_may_be_one_value(value: Any, is_meant: bool, tiny: Callable[..., Config]) -> None:
    config = resolve(tiny(model={"name": "mlp", "hidden": [8]}))
    assert matches(config, {"model.hidden": value}) == is_meant
