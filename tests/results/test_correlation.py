"""Rank correlations over runs, or over the groups of layers of a run, as an experiment expects them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from fedsim.analysis.ranks import rank_correlation
from fedsim.cli.actions import reporting
from fedsim.config import Config
from fedsim.config.choices import resolve
from fedsim.config.expectation import Expectation
from fedsim.errors import ConfigError
from fedsim.results.check.check import Check, check
from fedsim.results.folder import RunFolder
from fedsim.results.report import read_result
from fedsim.results.result import Result
from tests.conftest import TINY

# The accuracy of sharing a layer alone against its barrier between clients that train alone.
OF_LAYERS = {
    "metric": "accuracy",
    "where": {"strategy.name": "layer_set"},
    "of": {"barrier": "loss_mean_ends", "group": "strategy.shared", "strategy.name": "local"},
    "compare": "rank-correlation",
    "over": "strategy",
    "below": 0.0,
}
# The accuracy against the step size.
OF_LR = {"metric": "accuracy", "of": {"setting": "local.lr"}, "compare": "rank-correlation", "over": "local"}
# Barriers to the average against those of pairs.
OF_GROUPS = {
    "barrier": "loss_mean_ends",
    "of": {"against": "pairs"},
    "compare": "rank-correlation",
    "over": "groups",
    "above": 0.0,
}


def checked(results: Sequence[Result], **settings: Any) -> Check:
    [found] = check(results, [Expectation.model_validate(settings)])
    return found


def barriers(values: Mapping[str, float], other: int = -1) -> pd.DataFrame:
    rows = [(name, 0, other, 1.0 if other < 0 else 0.5, value, 2) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["group", "base", "other", "t", "loss_mean_ends", "round"])


@pytest.fixture
def study(result: Callable[..., Result]) -> Callable[..., list[Result]]:
    """Build the runs of a seed that share a layer each, and one that shares nothing and has barriers."""

    def build(accuracies: Mapping[str, float], heights: Mapping[str, float], **changes: Any) -> list[Result]:
        alone = replace(result(strategy={"name": "local"}, **changes), barriers=barriers(heights))
        return [
            alone,
            *(
                result(accuracy=(value,), strategy={"name": "layer_set", "shared": layer}, **changes)
                for layer, value in accuracies.items()
            ),
        ]

    return build


LAYERS = ("fc1", "fc2", "fc3", "fc4", "fc5")


def test_it_is_that_of_scipy_in_each_seed_with_the_interval_over_seeds(study: Callable[..., list[Result]]) -> None:
    rng = np.random.default_rng(0)
    results, expected = [], []
    for seed in range(3):
        # Rounded, so that there are ties.
        accuracies, heights = np.round(rng.uniform(size=5), 1), np.round(rng.normal(size=5), 1)
        accuracies[1] = accuracies[0]
        results += study(
            dict(zip(LAYERS, accuracies, strict=True)), dict(zip(LAYERS[::-1], heights[::-1], strict=True)), seed=seed
        )
        expected.append(scipy.stats.spearmanr(accuracies, heights).statistic)
    found = checked(results, **OF_LAYERS)
    ends = scipy.stats.t.interval(0.95, 2, np.mean(expected), scipy.stats.sem(expected))
    assert (found.bounds.value, found.bounds.low, found.bounds.high) == pytest.approx((np.mean(expected), *ends))
    assert (found.seeds, found.points) == (3, 5)
    text = "mean personalised accuracy, round last, rank correlation over strategy with that of barrier"
    more = " = loss_mean_ends, group = strategy.shared, strategy.name = local (3 seeds of 5 points)"
    assert str(found).endswith(f"below 0: {text}{more}")


@pytest.mark.parametrize(
    ("orders", "verdict"),
    [
        (("321", "321", "321"), "ok"),
        (("123", "123", "123"), "FAILED"),
        (("321", "123", "321"), "undecided"),
        (("321",), "undecided"),
    ],
)
def test_the_interval_decides(study: Callable[..., list[Result]], orders: Sequence[str], verdict: str) -> None:
    results = [
        run
        for seed, order in enumerate(orders)
        for run in study(
            {layer: int(rank) / 10 for layer, rank in zip(LAYERS, order, strict=False)},
            {"fc1": -1.0, "fc2": 0.0, "fc3": 5.0},
            seed=seed,
        )
    ]
    assert checked(results, **OF_LAYERS).verdict == verdict


def test_runs_that_differ_elsewhere_are_ranked_apart_and_copies_count_once(study: Callable[..., list[Result]]) -> None:
    rising = study({"fc1": 0.1, "fc2": 0.2, "fc3": 0.9}, {"fc1": 1.0, "fc2": 2.0, "fc3": 3.0}, local__lr=0.1)
    falling = study({"fc1": 0.9, "fc2": 0.2, "fc3": 0.1}, {"fc1": 1.0, "fc2": 2.0, "fc3": 3.0}, local__lr=0.2)
    found = list(check([*rising, *falling, *falling[1:]], [Expectation.model_validate(OF_LAYERS)], means=True))
    assert [(each.runs, each.value, each.points) for each in found] == [
        ("local.lr=0.1", pytest.approx(1), 3),
        ("local.lr=0.2", pytest.approx(-1), 3),
    ]
    assert [each.verdict for each in found] == ["FAILED", "ok"]


def test_numbers_among_the_settings_rank_as_such_and_others_as_where_lists_them(
    result: Callable[..., Result],
) -> None:
    steps = {0.3: 0.7, 0.02: 0.5, 1.0: 0.9}
    results = [result(accuracy=(value,), local__lr=lr) for lr, value in steps.items()]
    assert checked(results, **OF_LR, above=0.0).value == pytest.approx(1)
    assert checked(results, **OF_LR | {"over": "local.lr"}, above=0.0).value == pytest.approx(1)
    depths = {"first:10": 0.9, "fc1": 0.7, "first:2": 0.5}
    results = [
        result(accuracy=(value,), strategy={"name": "layer_set", "shared": key}) for key, value in depths.items()
    ]
    shared = {"of": {"setting": "strategy.shared"}, "over": "strategy", "above": 0.0}
    listed = {"where": {"strategy.shared": ["fc1", "first:2", "first:10"]}}
    assert checked(results, **OF_LR | shared | listed).value == pytest.approx(0.5)
    tied = {"where": {"strategy.shared": [["fc1", "first:2"], ["first:10"]]}}
    expected = scipy.stats.spearmanr([0, 0, 1], [0.7, 0.5, 0.9]).statistic
    assert checked(results, **OF_LR | shared | tied).value == pytest.approx(expected)
    with pytest.raises(
        ConfigError, match=r"strategy.shared = 'first:10', which is no number; list the values in where"
    ):
        checked(results, **OF_LR | shared)
    # Alone, a setting is a value as any other, such as of a step size that was tuned.
    assert checked([result(local__lr=0.3)], setting="local.lr", below=0.5).value == 0.3


def test_a_tuned_setting_may_differ_between_the_points(result: Callable[..., Result], tmp_path: Path) -> None:
    wanted = OF_LR | {"of": {"setting": "strategy.mu"}, "over": "strategy", "above": 0.0}
    results = [
        result(str(tmp_path), accuracy=(0.1 + mu,), strategy={"name": "fedprox", "mu": mu}, local__lr=lr)
        for mu, lr in ((0.1, 0.3), (0.2, 0.3), (0.3, 0.4))
    ]
    with pytest.raises(ConfigError, match=r"needs at least 3 points, and seed 0 has 2: \w+ \(FedProx\(mu=0.1\)\), "):
        checked(results, **wanted)
    (tmp_path / "tuning.json").write_text('{"choices": [{"chosen": {"local.lr": 0.3}}]}')
    assert checked(results, **wanted).value == pytest.approx(1)


def test_over_groups_each_layer_of_a_run_is_a_point(result: Callable[..., Result]) -> None:
    heights, pairs = {"fc1": 1.0, "fc2": 2.0, "fc3": 3.0}, {"fc1": 5.0, "fc3": 6.0, "fc2": 7.0}
    others = {"full": 9.0, "shallow:1": 0.0, "shallow:2": 1.0, "shallow:3": 2.0}
    table = pd.concat([barriers(heights | others), barriers(pairs | others, other=1)])
    run = replace(result(), barriers=table)
    found = checked([run], **OF_GROUPS)
    assert (found.value, found.points) == (pytest.approx(0.5), 3)
    assert ": mean loss_mean_ends of layers, round last, rank correlation over groups with that of" in str(found)
    assert checked([run], **OF_GROUPS | {"group": "shallow:*"}).value == pytest.approx(1)
    # Several rows of a group are one point.
    twice = replace(run, barriers=pd.concat([table, barriers({"fc1": 9.0}).assign(base=1)]))
    assert checked([twice], **OF_GROUPS).value == pytest.approx(scipy.stats.spearmanr([5, 2, 3], [5, 7, 6]).statistic)
    lacking = replace(run, barriers=table[(table["group"] != "fc2") | (table["other"] < 0)])
    with pytest.raises(ConfigError, match=r"over 'groups': fc2 has only one of both values in .*; measure the other"):
        checked([lacking], **OF_GROUPS)


def test_groups_of_two_tables_are_paired_by_name(result: Callable[..., Result], tmp_path: Path) -> None:
    run = replace(result(str(tmp_path)), barriers=barriers({"fc1": 1.0, "fc2": 3.0, "fc3": 2.0}))
    for name, column in (("distances", "group"), ("robustness", None)):
        (run.folder.path / name).mkdir(parents=True)
        table = pd.DataFrame({"base": 0, "other": -1, "distance": [0.3, 0.1, 0.2]})
        table = table.assign(**{column: ["fc2", "fc1", "fc3"]}) if column else table
        table.to_parquet(run.folder.path / name / "round-00002.parquet")
    distances = OF_GROUPS | {"of": {"measure": "distances", "column": "distance"}}
    assert checked([run], **distances).value == pytest.approx(1)
    with pytest.raises(ConfigError, match="the table 'robustness' is not of groups of layers; use another one"):
        checked([run], **distances | {"of": {"measure": "robustness", "column": "distance"}})


def test_a_group_whose_name_is_a_pattern_is_that_group(study: Callable[..., list[Result]]) -> None:
    heights = {"fc1": 9.0, "fc*": 1.0, "fc2 - fc1": 2.0, "head": 3.0, "fc2": 0.0}
    results = study({"fc*": 0.1, "fc2 - fc1": 0.2, "head": 0.3}, heights)
    assert checked(results, **OF_LAYERS).value == pytest.approx(1)
    with pytest.raises(ConfigError, match="has no mean loss_mean_ends of fc3, round last; measure it"):
        checked([*results, *study({"fc3": 0.1}, heights)], **OF_LAYERS)
    with pytest.raises(
        ConfigError, match=r"has no strategy.shared, which names the group of .*; leave this run out with"
    ):
        checked(results, **OF_LAYERS | {"where": {}})


@pytest.mark.parametrize(
    ("accuracies", "heights"),
    [((0.3, 0.3, 0.3), (1.0, 2.0, 3.0)), ((0.1, 0.2, 0.3), (0.1, 0.3 - 0.2, 0.1))],
)
def test_values_that_are_all_equal_decide_nothing(
    study: Callable[..., list[Result]], accuracies: Sequence[float], heights: Sequence[float]
) -> None:
    results = study(dict(zip(LAYERS, (0.3, 0.2, 0.1), strict=False)), {"fc1": 1.0, "fc2": 2.0, "fc3": 3.0}, seed=0)
    results += study(dict(zip(LAYERS, accuracies, strict=False)), dict(zip(LAYERS, heights, strict=False)), seed=1)
    found = checked(results, **OF_LAYERS)
    assert found.verdict == "undecided"
    assert str(found).endswith("(2 seeds of 3 points; undefined, as all points of seed 1 have the same value)")
    [by_mean] = check(results, [found.expectation], means=True)
    assert by_mean.verdict == "undecided"


def test_more_seeds_are_no_remedy_where_nothing_can_be_ranked(
    study: Callable[..., list[Result]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heights = {"fc1": 1.0, "fc2": 2.0, "fc3": 3.0}
    for accuracies, end in (((0.3, 0.3, 0.3), "1 undecided"), ((0.1, 0.2, 0.3), "decide by the value with --means")):
        results = study(dict(zip(LAYERS, accuracies, strict=False)), heights)
        monkeypatch.setattr(reporting.api, "load", lambda paths, results=results: results)
        assert reporting.check([], [Expectation.model_validate(OF_LAYERS)], means=False, strict=False)
        assert capsys.readouterr().err.rstrip().endswith(end)


def test_a_missing_value_fails(study: Callable[..., list[Result]]) -> None:
    results = study({"fc1": 0.3, "fc2": np.nan, "fc3": 0.3}, {"fc1": 1.0, "fc2": 1.0, "fc3": 1.0})
    assert checked(results, **OF_LAYERS).verdict == "FAILED"


def test_a_seed_without_a_point_of_the_others_is_named(study: Callable[..., list[Result]]) -> None:
    heights = {"fc1": 1.0, "fc2": 2.0, "fc3": 3.0, "fc4": 4.0}
    results = study({"fc1": 0.1, "fc2": 0.2, "fc3": 0.3, "fc4": 0.4}, heights, seed=0)
    results += study({"fc1": 0.1, "fc2": 0.2, "fc4": 0.4}, heights, seed=1)
    with pytest.raises(ConfigError, match=r"seed 1 lacks \w+ \(layer_set\(shared=fc3\)\), which other seeds have"):
        checked(results, **OF_LAYERS)


def test_what_it_is_over_must_be_known(study: Callable[..., list[Result]]) -> None:
    results = study({"fc1": 0.1, "fc2": 0.2, "fc3": 0.3}, {"fc1": 1.0, "fc2": 2.0, "fc3": 3.0})
    for over in ("layers", "strategy.share"):
        with pytest.raises(ConfigError, match=f"over = '{over}' is neither 'groups' nor a table or setting; use one"):
            checked(results, **OF_LAYERS | {"over": over})


@pytest.mark.parametrize(
    ("values", "references", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1),
        ([1, 2, 3], [30, 20, 10], -1),
        ([1, 2, 3, 4], [1, 3, 2, 4], 1 - 6 * 2 / (4 * 15)),
        ([1, 1, 2], [1, 2, 3], np.sqrt(3) / 2),
        # 0.1 + 0.2 is above 0.3 by rounding.
        ([0.1 + 0.2, 0.3, 2], [1, 2, 3], np.sqrt(3) / 2),
        ([1e-20, 2e-20, 3e-20], [1, 2, 3], 1),
        ([1, np.inf, 2], [1, 3, 2], 1),
    ],
)
def test_a_rank_correlation_by_hand(values: list[float], references: list[float], expected: float) -> None:
    assert rank_correlation(values, references) == pytest.approx(expected)


@pytest.mark.parametrize("constant", [[2.0, 2.0, 2.0], [0.1 + 0.2, 0.3, 0.3], [0.0, 0.0, 0.0], [np.inf] * 3])
def test_what_has_no_ranks_has_no_correlation(constant: list[float]) -> None:
    assert np.isnan(rank_correlation(constant, [1, 2, 3]))
    assert np.isnan(rank_correlation([1, 2, 3], constant))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"over": None}, "needs over: 'groups', or what the runs differ in, such as 'strategy'"),
        ({"compare": "difference"}, "over needs compare = 'rank-correlation'; add it, or leave over out"),
        ({"of": {}}, "compare = 'rank-correlation' needs of, which the value is correlated with"),
        ({"above": 1.5, "below": None}, "above 1.5 cannot be met by a rank correlation, which is from -1 to 1"),
        ({"below": -1.1}, "below -1.1 cannot be met by a rank correlation, which is from -1 to 1; change a bound"),
        ({"over": "groups"}, "over = 'groups' needs a barrier or a measure, and so does of: a metric is of no group"),
        (OF_GROUPS | {"of": {"setting": "local.lr"}, "metric": None}, "and so does of: a setting is of no group"),
        ({"setting": "local.lr"}, "must have either barrier or metric or measure or setting"),
        ({"of": {"setting": "local.lr", "reduce": "max"}}, "reduce = 'max' has no effect on a setting, only on a"),
        ({"of": {"barrier": "loss_chord", "split": "validation"}}, "split = 'validation' has no effect on a barrier"),
        ({"of": {"barrier": "loss_chord", "metric": "loss"}}, "must have either barrier or metric"),
    ],
)
def test_a_correlation_that_says_nothing_is_a_mistake(changes: dict[str, Any], message: str) -> None:
    expected = {key: value for key, value in (OF_LAYERS | changes).items() if value is not None}
    with pytest.raises(ConfigError, match=message) as caught:
        Config.parse(TINY | {"expect": [expected]}, "tiny")
    assert "\n" not in str(caught.value)


def test_what_another_kind_of_value_has_no_use_for_is_not_kept() -> None:
    validation = {"split": "validation", "model": "global", "server": True, "reduce": "max", "round": 2}
    reference = Expectation.model_validate(OF_LAYERS | validation).reference
    assert reference is not None
    kept = {"barrier": "loss_mean_ends", "group": "strategy.shared", "reduce": "max", "round": 2, "below": 0.0}
    assert reference.model_dump(exclude_unset=True) == kept | {"where": OF_LAYERS["where"]}


def test_whole_runs_are_correlated_as_their_files_say(play: Callable[..., RunFolder]) -> None:
    layers = ["fc1", "fc2", "fc3", "fc4"]
    strategies = [{"name": "local"}, *({"name": "layer_set", "shared": layer} for layer in layers)]
    settings = TINY | {
        "rounds": 1,
        "model": {"name": "mlp", "hidden": [12, 12, 12]},
        "barriers": {"every": 1, "on": ["server"], "examples": 40, "groups": ["layers"]},
        "sweep": {"strategy": strategies},
        "expect": [OF_LAYERS | {"metric": "loss"}],
    }
    configs = [resolve(each) for each in Config.parse(settings, "study").runs("study")]
    alone, *sharing = (play(config, f"{number}-run") for number, config in enumerate(configs))
    losses = []
    for folder in sharing:
        rows = pd.read_json(folder.path / "metrics.jsonl", lines=True)
        rows = rows.query("model == 'personalised' and metric == 'loss' and split == 'test'")
        losses.append(rows[rows["client"].notna()]["value"].mean())
    table = pd.read_parquet(alone.path / "barriers" / "round-00001.parquet").query("other == -1 and t == 1")
    heights = [table[table["group"] == layer]["loss_mean_ends"].mean() for layer in layers]
    assert len(set(losses)) == len(set(heights)) == len(layers)
    [found] = check([read_result(folder) for folder in (alone, *sharing)])
    assert found.value == pytest.approx(scipy.stats.spearmanr(losses, heights).statistic)
    assert (found.seeds, found.points) == (1, 4)
