"""A comparison says of each setting what its seeds say, at the last round and at the best on validation data."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.report import read_result, write_comparison
from fedsim.results.report.comparing.comparison import Comparison, compare
from fedsim.results.report.comparing.export import values_of
from fedsim.results.report.comparing.question import Question, read_budgets
from fedsim.results.report.comparing.tables import chosen_columns, comparison_table
from fedsim.results.report.comparing.verdict import verdict_of
from fedsim.results.report.pages.comparison_tables import comparison_tables
from fedsim.results.result import Result
from tests.conftest import unseal
from tests.results.report import cases

Build = Callable[..., Result]
FULL, LOCAL = {"name": "full"}, {"name": "local"}


@pytest.fixture
def build(tiny: Callable[..., Config]) -> Build:
    def result(accuracy: Any, records: Mapping[str, Any] | None = None, **changes: Any) -> Result:
        return cases.result(tiny(**changes), accuracy, **(records or {}))

    return result


def values(comparison: Comparison, key: str) -> list[float]:
    return [row.values[key].mean for row in comparison.rows]


@pytest.mark.slow
def test_a_comparison_of_whole_runs_is_the_mean_over_seeds_of_plain_means(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    own = {"partition": {"scheme": "iid"}, "barriers__every": 0}
    folders = [play(tiny(seed=seed, **own), f"seed{seed}") for seed in (0, 1)]
    folders.append(play(tiny(strategy=LOCAL, **own), "local"))
    comparison = compare([read_result(folder) for folder in folders])
    assert [(row.group.label, row.group.seeds) for row in comparison.rows] == [("FedAvg", 2), ("local", 1)]
    plain = []
    for folder in folders[:2]:
        table = read_rows(folder.metrics).query("round == 2 and model == 'personalised' and split == 'test'")
        clients = table[table["metric"] == "accuracy"]["value"].to_numpy()
        jain = clients.sum() ** 2 / (len(clients) * (clients**2).sum())
        plain.append((clients.mean(), clients.std(), clients.min(), jain))
    row = comparison.rows[0].values
    got = [row[key] for key in ("personalised", "std", "worst", "jain")]
    assert [each.mean for each in got] == pytest.approx(np.mean(plain, axis=0))
    assert [each.half_width for each in got] == pytest.approx(stats.t.ppf(0.975, 1) * stats.sem(plain))
    sent = [read_rows(folder.communication)[["up", "down"]].sum() for folder in folders[:2]]
    assert values(comparison, "up") == [(sent[0]["up"] + sent[1]["up"]) / 2, 0]
    assert values(comparison, "down") == [(sent[0]["down"] + sent[1]["down"]) / 2, 0]
    # Plain training passes each of a client's 200 / 4 examples that are no validation or test data once per round.
    assert values(comparison, "passes") == [2 * 4 * 35, 2 * 4 * 35]
    table = comparison_table(comparison)
    assert table.rows[0][3].startswith(f"{100 * got[0].mean:.1f} ± ")
    assert "±" not in table.rows[1][3]

    for folder in folders:  # as runs were recorded before training was counted and there were further parameter sets
        for path in (unseal(folder).metrics, folder.communication):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            kept = [row for row in rows if "_examples" not in row.get("metric", "")]
            path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "set"}) + "\n" for row in kept))
    old = compare([read_result(folder) for folder in folders])
    assert {each.key for each in comparison.columns} - {each.key for each in old.columns} == {"passes", "at_passes"}
    for column in old.columns:
        assert [row.values[column.key] for row in old.rows] == [row.values[column.key] for row in comparison.rows]


def test_settings_that_differ_between_runs_have_a_column(build: Build) -> None:
    changes: list[dict[str, Any]] = [{}, {"partition": {"scheme": "dirichlet", "alpha": 5.0}}, {"local__lr": 0.2}]
    comparison = compare([build([[0.5]], **each) for each in changes])
    assert [dict(row.group.settings) for row in comparison.rows] == [
        {"local.lr": 0.1, "partition.alpha": 0.5},
        {"local.lr": 0.1, "partition.alpha": 5.0},
        {"local.lr": 0.2, "partition.alpha": 0.5},
    ]
    assert comparison_table(comparison).headings[:4] == ("strategy", "local.lr", "partition.alpha", "seeds")


def test_the_best_round_is_chosen_on_validation_data_and_costs_are_counted_until_then(build: Build) -> None:
    # Test data would choose round 1, validation data choose round 2, the first of two equal ones.
    records = {"validation": [[0.1, 0.1], [0.8, 0.4], [0.4, 0.8]], "up": [1, 2, 4]}
    run = build([[0.9, 0.9], [0.5, 0.3], [0.6, 0.8]], records)
    best, last = (compare([run], Question(at=at)) for at in ("best", "last"))
    got = [[values(each, key)[0] for key in ("rounds", "personalised", "up", "seconds")] for each in (best, last)]
    assert got == [[2, pytest.approx(0.4), 3, 4], [3, pytest.approx(0.7), 7, 6]]
    # The loss is best in the same round, and its worst client is the one with the most.
    assert values(compare([run], Question("loss", at="best")), "worst") == [pytest.approx(0.7)]


def test_a_page_answers_for_the_round_that_was_asked_for(build: Build, tmp_path: Path) -> None:
    # In the best round the first method is ahead, in the last one the second.
    runs = [
        build([[0.9], [0.2]], {"validation": [[0.8], [0.1]]}, strategy=FULL),
        build([[0.4], [0.6]], {"validation": [[0.3], [0.5]]}, strategy=LOCAL),
    ]
    answers = {
        "best": "Accuracy in the best round, higher is better: FedAvg 90.0 against local 60.0",
        "last": "local 60.0 against FedAvg 20.0",
    }
    for at, answer in answers.items():
        question = Question(at=at)
        compared = compare(runs, question)
        assert verdict_of(compared).sentence.startswith(answer)
        assert f"<p>{answer}" in write_comparison(runs, tmp_path, question).read_text()
        first, second, *_ = comparison_tables(runs, compared, {})
        assert (first["title"].split()[0].lower(), "copies" in second) == (at, False)
        place = first["table"].headings.index("personalised")
        of_full = [table["table"].rows[0][place] for table in (first, second)]
        assert of_full == (["90.0", "20.0"] if at == "best" else ["20.0", "90.0"])


def test_without_validation_data_no_round_is_the_best(build: Build) -> None:
    with pytest.raises(ConfigError, match=r"--at best: made-up/.* has no values on validation data"):
        compare([build([[0.5]])], Question(at="best"))


def test_the_runs_without_a_metric_on_validation_data_are_named(build: Build, tiny: Callable[..., Config]) -> None:
    whole = cases.result(tiny(), [[0.5]], validation=[[0.6]])
    without, other = build([[0.5]], seed=1), build([[0.5]], seed=2)
    tested = cases.result(
        tiny(seed=3), [[0.5]], validation=[[0.6]], more=[(1, 0, "test", "personalised", "auroc", 0.7)]
    )
    scored = [(1, 0, split, "personalised", "auroc", 0.7) for split in ("test", "validation")]
    validated = cases.result(tiny(seed=4), [[0.5]], validation=[[0.6]], more=scored)
    lacking = f"{without.folder.path}, {other.folder.path} have no values on validation data"
    for question, option in ((Question(at="best"), "--at best"), (Question(target=0.5), "--target")):
        with pytest.raises(
            ConfigError, match=rf"^{option}: {re.escape(lacking)}, .* run them with partition.validation"
        ):
            compare([whole, without, other], question)
        named = re.escape(f"{tested.folder.path} has no auroc on validation data")
        with pytest.raises(
            ConfigError, match=rf"^{option}: {named}, .*; .*choose one of loss, accuracy, or run again with"
        ):
            compare([validated, tested], replace(question, metric="auroc"))


def test_runs_of_one_seed_count_as_one_when_grouped_by_a_setting(build: Build) -> None:
    runs = [
        build([[value]], seed=seed, local__lr=lr) for seed, lr, value in ((0, 0.1, 0.2), (0, 0.2, 0.4), (1, 0.1, 0.9))
    ]
    [row] = compare(runs, Question(by="strategy.name")).rows
    assert (row.group.label, row.group.seeds) == ("strategy.name=FedAvg", 2)
    assert row.values["personalised"].mean == pytest.approx((0.3 + 0.9) / 2)
    assert row.values["personalised"].half_width == pytest.approx(stats.t.ppf(0.975, 1) * stats.sem([0.3, 0.9]))
    with pytest.raises(ConfigError, match=r"'strategy\.nam' is not a setting"):
        compare(runs, Question(by="strategy.nam"))


def test_what_was_not_measured_has_no_column_and_what_was_asked_for_has_one(build: Build) -> None:
    validated = {"validation": [[0.5], [0.6]]}
    runs = [
        build([[0.5], [0.7]], {"up": [10, 10], **validated}, strategy=FULL),
        build([[0.6], [0.6]], validated, strategy=LOCAL),
    ]
    assert {"fine_tuned", "unseen", "passes", "difference"}.isdisjoint(each.key for each in compare(runs).columns)
    asked = compare(runs, Question(baseline="local", target=0.99, budgets={"bytes": 20.0}))
    table = comparison_table(asked)
    cells = dict(zip(table.headings, table.rows[0], strict=True))
    assert (cells["bytes to 99 %"], cells["passes to 99 %"], cells["rounds to 99 %"]) == ("-", "-", "-")
    assert any("running mean of 3 evaluations on validation data" in note for note in table.notes)
    assert (cells["vs local"], cells["> / = / < local"], cells["pairs"]) == ("+10.0", "1 / 0 / 0", "1")
    assert cells["at 20 bytes"] == "50.0"
    assert {row[table.headings.index("at 20 bytes")] for row in table.rows} == {"50.0", "60.0"}


def test_models_after_fine_tuning_and_unseen_clients_have_columns_of_their_own(build: Build) -> None:
    more = [
        *((2, client, "test", "fine-tuned", "accuracy", value) for client, value in enumerate((0.8, 1.0))),
        (1, 0, "test", "fine-tuned", "accuracy", 0.1),
        (2, 7, "unseen", "personalised", "accuracy", 0.3),
        (2, 8, "unseen", "personalised", "accuracy", 0.4),
        (2, 0, "server", "personalised", "accuracy", 0.0),
        (2, 0, "test", "global", "accuracy", 0.2),
        (2, 1, "test", "global", "accuracy", 0.3),
    ]
    comparison = compare([build([[0.5, 0.5], [0.6, 0.8]], {"more": more})])
    keys = ("personalised", "fine_tuned", "unseen", "global", "global_clients")
    assert [values(comparison, key)[0] for key in keys] == pytest.approx([0.7, 0.9, 0.35, 0.1, 0.25])


def test_a_weighted_mean_is_that_of_all_test_examples(build: Build) -> None:
    run = build([[0.5, 1.0, 0.0]], {"test_examples": [10, 30, 40]})
    assert values(compare([run]), "weighted") == pytest.approx([(5 + 30) / 80])
    assert "weighted" not in [column.key for column in chosen_columns(compare([run]))]


def test_gains_over_local_training_and_plain_averaging_are_shown_where_both_were_run(build: Build) -> None:
    runs = [
        build([[0.5, 0.5, 0.5, 0.5]], strategy=FULL),
        build([[0.4, 0.6, 0.4, 0.4]], strategy=LOCAL),
        build([[0.6, 0.6, 0.4, 0.4]], strategy={"name": "layer_set", "shared": "head"}),
    ]
    table = comparison_table(compare(runs))
    chosen = [table.headings.index(name) for name in ("> / = / < local", "> / = / < FedAvg")]
    assert [tuple(row[index] for index in chosen) for row in table.rows] == [
        ("3 / 0 / 1", "-"),
        ("-", "1 / 0 / 3"),
        ("1 / 3 / 0", "2 / 0 / 2"),
    ]


def test_counts_of_clients_are_three_columns_of_a_file_and_few_test_examples_are_marked(build: Build) -> None:
    records = {"test_examples": [5, 100, 9, 10]}
    runs = [build([[0.5, 0.5, 0.5, 0.5]], records, strategy=FULL, seed=seed) for seed in (0, 1)] + [
        build([[0.4, 0.5, 0.6, 0.4]], records, strategy=LOCAL, seed=seed) for seed in (0, 1)
    ]
    comparison = compare(runs)
    head, first, second = values_of(comparison, chosen_columns(comparison, "gain_local"))
    assert head[-3:] == ["gain_local_better", "gain_local_equal", "gain_local_worse"]
    assert (first[-3:], second[-3:]) == (["4", "2", "2"], ["", "", ""])
    table = comparison_table(comparison, chosen_columns(comparison, "gain_local"))
    assert [row[-1] for row in table.rows] == ["4 / 2 / 2*", "-"]
    assert table.notes == ("*: some of these clients have fewer than 10 test examples",)
    assert comparison.rows[0].values["gain_local"].few == 4


def test_a_seed_that_never_reaches_the_target_leaves_the_mean_unknown(build: Build) -> None:
    runs = [
        build([[1.0], [1.0]], {"up": [10, 10], "validation": [[0.5], [value]]}, seed=seed)
        for seed, value in ((0, 0.9), (1, 0.6))
    ]
    # From 0.5 after 20 bytes, one reaches it a quarter into its next 20 bytes, the other at their end.
    single = Question(target=0.6, smooth=1)
    assert values(compare(runs, single), "bytes_to_target") == [pytest.approx((25 + 40) / 2)]
    assert np.isnan(values(compare(runs, replace(single, target=0.9)), "bytes_to_target")).all()
    assert np.isnan(values(compare(runs, Question(target=0.6)), "bytes_to_target")).all()  # the means of both rounds


def test_the_budget_is_by_default_the_least_that_a_run_spends(build: Build) -> None:
    runs = [build([[0.5], [0.7]], {"up": [up, up]}, local__lr=lr) for up, lr in ((10, 0.1), (5, 0.2))]
    comparison = compare(runs, Question(budgets={"bytes": None}))
    assert values(comparison, "at_bytes") == [0.5, 0.7]
    assert "at 20 bytes" in comparison_table(comparison).headings
    assert "at 20 bytes" not in comparison_table(compare(runs)).headings  # of all columns only
    assert "at 20 bytes" in comparison_table(compare(runs), chosen_columns(compare(runs), "all")).headings
    with pytest.raises(ConfigError, match="--budget passes: no run has spent any"):
        compare(runs, Question(budgets={"passes": None}))


def test_each_partition_has_a_budget_of_its_own(build: Build) -> None:
    amounts = {(0, "full"): [10, 10], (0, "local"): [5, 25], (1, "full"): [1, 1], (1, "local"): [1, 3]}
    runs = [
        build([[0.5], [0.7]], {"up": up}, seed=seed, strategy={"name": name}) for (seed, name), up in amounts.items()
    ]
    comparison = compare(runs, Question(budgets={"bytes": None}))
    # Of seed 0, 40 bytes: full ends there, local is between 10 and 60. Of seed 1, 4 bytes: between 2 and 8.
    assert values(comparison, "at_bytes") == pytest.approx([0.7, 0.5 + 0.2 * (30 / 50 + 2 / 6) / 2])
    table = comparison_table(comparison)
    column = table.headings.index("at equal bytes")
    assert [row[column].startswith("~") for row in table.rows] == [False, True]
    assert table.notes == (
        "at equal bytes: the smallest total of a run with the same partition and seed, 4 bytes to 40 bytes",
        "~: interpolated between two evaluated rounds",
    )
    head, first, second = list(values_of(comparison, comparison.columns))
    assert [line[head.index("at_bytes_interpolated")] for line in (first, second)] == ["false", "true"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [([], {}), (["bytes"], {"bytes": None}), (["bytes=50MB", "passes = 1.5M"], {"bytes": 5e7, "passes": 1.5e6})],
)
def test_budgets_are_read(texts: list[str], expected: dict[str, float | None]) -> None:
    assert read_budgets(texts) == expected


@pytest.mark.parametrize("text", ["seconds=3", "bytes=", "bytes=much", "passes=-1", "50MB"])
def test_what_is_no_budget_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget"):
        read_budgets([text])


@pytest.mark.parametrize(
    ("target", "metric"), [(90.0, "accuracy"), (0.0, "accuracy"), (-1.0, "loss"), (np.nan, "loss")]
)
def test_what_is_no_target_is_named(target: float, metric: Any) -> None:
    with pytest.raises(ConfigError, match="--target"):
        Question(metric, target=target)


def test_no_column_is_there_twice(build: Build) -> None:
    records = {"up": [1, 1], "validation": [[0.5], [0.7]]}
    runs = [build([[0.5], [0.7]], records, strategy=each) for each in (FULL, LOCAL)]
    keys = [column.key for column in compare(runs, Question(baseline="full", target=0.6)).columns]
    assert len(keys) == len(set(keys))


def test_columns_are_chosen_by_name(build: Build) -> None:
    comparison = compare([build([[0.5]])])
    chosen = chosen_columns(comparison, "jain, personalised")
    assert comparison_table(comparison, chosen).headings == ("strategy", "seeds", "Jain", "personalised")
    with pytest.raises(ConfigError, match=r"'jane' is not a column of this table; did you mean 'jain'"):
        chosen_columns(comparison, "jane")


def test_every_name_in_a_csv_and_every_heading_is_a_column(build: Build) -> None:
    records = {"up": [1, 1], "validation": [[0.5], [0.7]]}
    runs = [build([[0.5], [0.7]], records, strategy=each, seed=seed) for each in (FULL, LOCAL) for seed in (0, 1)]
    comparison = compare(runs, Question(baseline="full", target=0.6, correct="holm"))
    columns = {each.key: each for each in comparison.columns}
    names = next(values_of(comparison, comparison.columns))
    for name in names:
        chosen = chosen_columns(comparison, name)
        assert name in next(values_of(comparison, chosen))
        assert len(chosen) <= 1
    for name in [each.heading for each in columns.values()]:
        assert [each.heading for each in chosen_columns(comparison, name)] == [name]
    every = ", ".join([*names, *(each.heading.upper() for each in columns.values())])
    assert {each.key for each in chosen_columns(comparison, every)} == set(columns)
    assert comparison_table(comparison, chosen_columns(comparison, "seeds")).headings == ("strategy", "seeds")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("difference", "'difference' needs --baseline STRATEGY"),
        ("gain_baseline_better", "'gain_baseline_better' needs --baseline"),
        ("vs FedAvg", "'vs FedAvg' needs --baseline"),
        ("bytes_to_target_half_width", "needs --target"),
        ("fine-tuned", 'needs runs with "fine-tuned" in evaluation.models'),
        ("gain_local_worse", "needs a run of local"),
        ("jane", "is not a column of this table; did you mean 'jain'"),
    ],
)
def test_a_column_that_is_not_there_says_what_it_needs(build: Build, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        chosen_columns(compare([build([[0.5]])]), name)


def test_nothing_is_interpolated_where_nothing_is_known(build: Build) -> None:
    accuracy, records = [[0.5], [0.7]], {"up": [10, 10]}
    runs = [build(accuracy, records, seed=seed, strategy=FULL) for seed in (0, 1)]
    runs += [build(accuracy, {"up": up}, seed=seed, strategy=LOCAL) for seed, up in ((0, [15, 10]), (1, [60, 1]))]
    comparison = compare(runs, Question(budgets={"bytes": 35.0}))
    head, first, second = list(values_of(comparison, comparison.columns))
    place = head.index("at_bytes")
    assert [float(text) for text in first[place : place + 2]] == [pytest.approx(0.5 + 0.2 * 15 / 20), 0]
    assert [line[head.index("at_bytes_interpolated")] for line in (first, second)] == ["true", ""]
    assert second[place] == ""
