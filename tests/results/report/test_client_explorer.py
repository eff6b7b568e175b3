import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fedsim.config import Config
from fedsim.data.heterogeneity import Heterogeneity
from fedsim.results.report.charts.client_records import client_records, training_examples
from fedsim.results.report.charts.clients import client_explorer
from fedsim.results.report.comparing.comparison import compare
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.comparing.pairs import Baseline
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.small_clients import counts_targets, few_examples
from fedsim.results.report.comparing.verdict import verdict_of
from fedsim.results.result import Result
from tests.results.report.cases import result

HOSTILE = "a.b['\"</script><b>]\\"


def run_of(
    config: Config,
    accuracy: Sequence[Sequence[float]],
    labels: Sequence[dict[str, int]],
    classes: Sequence[str] = ("cat", "dog", "owl"),
) -> Result:
    """Return a run whose clients hold these labels, tested on 5 examples each, of which client 0 trained on 7."""
    made = result(config, accuracy, validation=accuracy, more=[(1, 0, "train", "uploaded", "loss", 0.1)])
    metrics = made.metrics.assign(n=np.where(made.metrics["model"] == "uploaded", 7, 5))
    sizes = [sum(each.values()) for each in labels]
    held = Heterogeneity.from_json({"classes": list(classes), "sizes": sizes, "label_counts": list(labels)})
    return replace(made, metrics=metrics, heterogeneity=held)


LABELS = [{"0": 10, "2": 10}, {"1": 30}, {"0": 4, "1": 4, "2": 12}]


def test_points_have_the_values_sizes_and_entropies_of_the_records(tiny: Callable[..., Config]) -> None:
    found = client_records([[run_of(tiny(), [[0.1, 0.2, 0.3], [0.4, math.nan, 0.6]], LABELS)]])
    points = found.points.set_index("i")
    assert points["v"].to_dict() == {0: 0.4, 2: 0.6}  # a client without a record in the last round has no point
    # As reported, or all examples less 5 for validation and 5 for the test.
    assert points["n"].to_dict() == {0: 7.0, 2: 10.0}
    shares = np.array([4, 4, 12]) / 20
    assert points["h"].to_dict() == pytest.approx({0: math.log(2), 2: -(shares * np.log(shares)).sum()})
    assert points["t"].tolist() == [5.0, 5.0]
    assert list(found.rounds) == [1, 2]
    assert {k: list(curve) for k, curve in found.curves.items()} == {0: [0.1, 0.4], 1: [0.3, 0.6]}
    assert found.labels[int(points.loc[2, "j"])] == {0: 4, 1: 4, 2: 12}


def test_points_have_the_names_of_origins_where_a_run_has_some(tiny: Callable[..., Config]) -> None:
    plain = run_of(tiny(), [[0.1, 0.2, 0.3]], LABELS)
    named = replace(plain, heterogeneity=replace(plain.heterogeneity, origins=("a", "<b>", "c")))
    assert client_records([[named], [plain]]).points["o"].tolist() == ["a", "<b>", "c", "", "", ""]
    for run, is_named in ((named, True), (plain, False)):
        chart = client_explorer(client_records([[run]]), {"a": Group("a", {}, [run])}, "accuracy")
        assert chart is not None
        assert ('"title": "origin"' in json.dumps(chart.to_dict())) == is_named


def test_a_client_with_one_class_has_no_entropy(tiny: Callable[..., Config]) -> None:
    found = client_records([[run_of(tiny(), [[0.1, 0.2, 0.3]], LABELS)]])
    assert found.points["h"].iloc[1] == 0.0


def test_gains_are_over_the_same_clients_of_the_run_with_the_same_seed(tiny: Callable[..., Config]) -> None:
    accuracies = {("full", 0): [0.5, 0.9, 0.2], ("local", 0): [0.4, 0.9, 0.5], ("full", 1): [0.3, 0.3, 0.3]}
    runs = {
        (name, seed): run_of(tiny(strategy__name=name, seed=seed), [values], LABELS)
        for (name, seed), values in accuracies.items()
    }
    baseline = Baseline("local", list(runs.values()))
    found = client_records([[runs["full", 0], runs["full", 1]], [runs["local", 0]]], baseline)
    gains = found.points.pivot(index="i", columns=["g", "s"], values="d")
    assert gains[0, 0].to_dict() == pytest.approx({0: 0.1, 1: 0.0, 2: -0.3})
    assert gains[0, 1].isna().all()  # seed 1 has no run of the baseline
    assert gains[1, 0].isna().all()  # the baseline has no gain over itself


def test_runs_of_one_partition_share_their_labels(tiny: Callable[..., Config]) -> None:
    runs = [run_of(tiny(strategy__name=name), [[0.1, 0.2, 0.3]], LABELS) for name in ("full", "local")]
    found = client_records([[run] for run in runs])
    assert len(found.labels) == 3
    assert found.points["j"].tolist() == [0, 1, 2, 0, 1, 2]
    assert found.points["k"].is_unique


def test_further_seeds_are_left_out_where_there_is_no_room(tiny: Callable[..., Config]) -> None:
    many = [{"0": 3}] * 1600
    groups = [[run_of(tiny(seed=seed), [[0.5] * 1600], many) for seed in range(2)]]
    found = client_records(groups)
    assert (len(found.points), found.left_out, set(found.points["s"])) == (1600, 1, {0})


def test_training_examples_of_a_run_without_counts_are_all_that_a_client_holds(tiny: Callable[..., Config]) -> None:
    run = run_of(tiny(), [[0.1, 0.2, 0.3]], LABELS)
    assert training_examples(replace(run, metrics=run.metrics.drop(columns="n"))).tolist() == [20.0, 30.0, 20.0]


def test_training_examples_of_sequences_are_targets_and_never_negative(tiny: Callable[..., Config]) -> None:
    run = run_of(tiny(), [[0.1, 0.2, 0.3]], LABELS)
    # Sequences of 5 targets: each client validates on one and tests on one; client 0 has reported its 7 targets.
    run = replace(run, heterogeneity=replace(run.heterogeneity, sizes=np.array([4, 6, 4])))
    assert training_examples(run).tolist() == [7.0, 20.0, 10.0]
    assert counts_targets(run)
    assert few_examples(run, Question()).empty
    [note] = [each for each in verdict_of(compare([run])).lights if "sequences" in each.text]
    assert note.level == "note"


def test_clients_with_a_label_for_each_example_are_marked_if_they_have_few(tiny: Callable[..., Config]) -> None:
    run = run_of(tiny(), [[0.1, 0.2, 0.3]], LABELS)
    assert not counts_targets(run)
    assert few_examples(run, Question()).tolist() == [5, 5, 5]


def test_several_labels_of_each_example_are_counted_as_examples(tiny: Callable[..., Config]) -> None:
    # Three yes-or-no labels: client 0 has 7 examples to train on, 2 to validate and 3 to test on, client 1 has not
    # trained. The labels that are yes are fewer than examples.
    run = run_of(tiny(), [[0.1, 0.2]], [{"0": 5}, {"1": 2, "2": 3}])
    counts = {"train": 21, "validation": 6, "test": 9}
    metrics = run.metrics.assign(n=[counts[split] for split in run.metrics["split"]])
    run = replace(run, metrics=metrics, heterogeneity=replace(run.heterogeneity, sizes=np.array([12, 15])))
    assert not counts_targets(run)
    assert few_examples(run, Question()).tolist() == [3, 3]
    assert training_examples(run).tolist() == [7, 10]
    assert client_records([[run]]).points["t"].tolist() == [3, 3]


@pytest.mark.parametrize("over", ["", HOSTILE])
def test_the_explorer_links_points_labels_and_curves(over: str, tiny: Callable[..., Config]) -> None:
    run = run_of(tiny(), [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], LABELS, ("cat", HOSTILE, "owl"))
    groups = {HOSTILE: Group(HOSTILE, {"alpha": HOSTILE}, [run]), "other": Group("other", {"alpha": "1"}, [run])}
    found = client_records([group.members for group in groups.values()])
    found = replace(found, points=found.points.assign(d=found.points["v"] - 0.4))
    chart = client_explorer(found, groups, "accuracy", over=over)
    assert chart is not None
    written = chart.to_dict(validate=True)
    uses = json.dumps({key: value for key, value in written.items() if key != "datasets"})
    assert uses.count('"param": "client"') >= 3  # the ring of the point, the labels, and the curve
    expressions = [step["calculate"] for step in steps(written) if "calculate" in step]
    assert not any("script" in each for each in expressions)
    scatter = written["vconcat"][0]["layer"][1 if over else 0]
    assert scatter["encoding"]["x"]["field"] == "x"
    chosen = next(each["value"] for each in written["params"] if each["name"] == "client")
    assert chosen == [{"k": 0}]  # the lowest


def steps(part: object) -> list[dict[str, object]]:
    """Return all transforms within a specification."""
    if isinstance(part, dict):
        own = list(part.get("transform", ()))
        return own + [step for value in part.values() for step in steps(value)]
    return [step for each in part for step in steps(each)] if isinstance(part, list) else []


def test_no_client_with_a_value_is_no_chart(tiny: Callable[..., Config]) -> None:
    run = run_of(tiny(), [[0.1, 0.2, 0.3]], LABELS)
    run = replace(run, metrics=run.metrics.assign(value=np.nan))
    assert client_explorer(client_records([[run]]), {"a": Group("a", {}, [run])}, "accuracy") is None


@pytest.mark.parametrize(("main", "unit"), [("accuracy", " (nats)"), ("rmse", "")])
def test_a_gain_of_an_error_is_named_as_a_difference(main: str, unit: str, tiny: Callable[..., Config]) -> None:
    """A regression's loss is in the unit of its targets."""
    run = run_of(tiny(), [[0.1, 0.2, 0.3]], LABELS)
    run = replace(run, metrics=run.metrics.replace({"metric": {"accuracy": main}}))
    found = client_records([[run]], metric="loss")
    found = replace(found, points=found.points.assign(d=pd.Series([0.1, 0.2, 0.3])))
    chart = client_explorer(found, {"a": Group("a", {}, [run])}, "loss", over="local")
    assert chart is not None
    title = chart.to_dict()["vconcat"][0]["layer"][1]["encoding"]["y"]["title"]
    assert title == f"difference to local: loss{unit}, below 0 is better"
