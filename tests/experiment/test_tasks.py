"""Runs that learn numbers, a yes or no, several labels and the next token, from the data to the comparison."""

import csv
import json
import math
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import torch

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment import api, predictions
from fedsim.experiment import run as experiment
from fedsim.experiment.dry_run import describe_run
from fedsim.federation.federation import federation_of
from fedsim.results import report
from fedsim.results.folder import RunFolder
from tests.conftest import run_files

SENTIMENT = Path(__file__).parents[3] / "shared/data/sentiment.csv"
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(260, 5)).astype(np.float32)
NUMBERS = INPUTS @ np.array([1.0, -2.0, 0.5, 0.0, 1.0]) + 0.1 * RNG.normal(size=260)
TARGETS = {
    "regression": NUMBERS,
    "binary": (NUMBERS > 0.5).astype(np.float32),
    "multi-label": np.stack([NUMBERS > 0, INPUTS[:, 1] > 0.5], 1).astype(np.float32),
    "classification": np.digitize(NUMBERS, [-1, 1]),
}
Tiny = Callable[..., Config]
Play = Callable[..., RunFolder]


@pytest.fixture
def on(tmp_path: Path, tiny: Tiny) -> Tiny:
    """Build a config of a run of a task on a small table."""

    def build(task: str, **changes: Any) -> Config:
        path, targets = tmp_path / f"{task}.npz", TARGETS[task]
        parts = {"train": slice(200), "test": slice(200, None)}
        arrays = {"inputs": INPUTS, "targets": targets}
        np.savez(path, **{f"{part}_{name}": arrays[name][at] for part, at in parts.items() for name in arrays})
        data = {"name": "arrays", "path": str(path)}
        return tiny(**{"data": data, "partition": {"scheme": "iid"}, "barriers__on": ["server", "clients"], **changes})

    return build


def rows(folder: RunFolder, **wanted: Any) -> list[dict[str, Any]]:
    every = map(json.loads, folder.metrics.read_text().splitlines())
    return [row for row in every if all(row[key] == value for key, value in wanted.items())]


def test_a_regression_is_measured_compared_and_reported_by_its_rmse(on: Tiny, play: Play) -> None:
    config = on("regression", rounds=4, evaluation__metrics=["r2"], local__lr=0.02)
    folder = play(config)
    keys = ("round", "client", "model", "split", "metric")
    found = {tuple(row[key] for key in keys): row["value"] for row in rows(folder)}
    for (*where, metric), value in found.items():
        if metric == "rmse":
            assert value**2 == pytest.approx(found[*where, "loss"], rel=1e-6)  # of float32 losses
    model = api.load(folder.path)[0].model()
    with torch.no_grad():
        outputs = model(federation_of(config).data.test()[0])[:, 0].numpy()
    errors = outputs - NUMBERS[200:].astype(np.float32)
    assert found[4, None, "global", "test", "rmse"] == pytest.approx(math.sqrt(np.square(errors).mean()), rel=1e-5)
    r2 = 1 - np.square(errors).sum() / np.square(NUMBERS[200:] - NUMBERS[200:].mean()).sum()
    assert found[4, None, "global", "test", "r2"] == pytest.approx(r2, rel=1e-4)
    table = pd.read_parquet(folder.measured("barriers", 4))
    for reference in ("", "_mean_ends", "_own_base", "_swap_ends"):
        assert np.allclose(table[f"loss{reference}"], table[f"error{reference}"], atol=1e-5)
    assert set(table["error_unit"]) == {"squared"}
    result = report.read_result(folder)
    means = result.mean_by_round(split="validation")
    assert result.main == "rmse"
    assert result.best_round() == means.idxmin()
    assert "rmse" not in describe_run(config).partition("# task")[0]
    page = report.write_run(result, folder.path).read_text()
    assert "RMSE and loss over the rounds" in page
    assert "ccuracy" not in re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)


def test_of_two_regressions_the_one_with_the_lower_error_wins(on: Tiny, play: Play, tmp_path: Path) -> None:
    for lr in (0.001, 0.02):
        play(on("regression", rounds=3, local__lr=lr), f"lr{lr}")
    runs = api.load([tmp_path / "lr0.001", tmp_path / "lr0.02"])
    table = api.compare(runs, baseline="local.lr=0.001", columns="all")
    assert table.question.metric == "rmse"
    headings, _, faster = table.values
    assert [faster[headings.index(f"gain_baseline_{name}")] for name in ("equal", "worse")] == ["0", "0"]
    assert float(faster[headings.index("worst")]) > float(faster[headings.index("personalised")])
    with pytest.raises(ConfigError, match=r"--metric auroc: no run has measured it; the task has no auroc, choose one"):
        api.compare(runs, metric="auroc")
    play(on("binary"), "binary")
    with pytest.raises(ConfigError, match=r"has rmse and .* has accuracy; compare runs of one task, or by loss"):
        api.compare([*runs, *api.load(tmp_path / "binary")])


@pytest.mark.parametrize("task", TARGETS)
def test_a_cohort_has_the_numbers_of_one_client_after_the_other(task: str, on: Tiny, play: Play) -> None:
    weights = {"loss": {"class_weights": "balanced"}} if task in ("binary", "classification") else {}
    metrics = {"regression": ["r2"], "multi-label": ["auroc"]}.get(task, ["auroc", "accuracy-by-class"])
    changes = {"evaluation__metrics": metrics, **weights}
    alone, together = play(on(task, **changes), "a"), play(on(task, **changes, engine__cohort=4), "b")
    pairs = list(zip(rows(alone), rows(together), strict=True))
    assert {row["metric"] for row, _ in pairs} > {"loss", *metrics} - {"accuracy-by-class"}
    for one, other in pairs:
        assert one["value"] == pytest.approx(other["value"], rel=1e-3, abs=1e-5, nan_ok=True)


def test_weights_of_classes_balance_a_clients_or_all_training_data(on: Tiny) -> None:
    for weights, whose in (("balanced", 1), ("balanced-all", None)):
        federation = federation_of(on("classification", loss={"class_weights": weights}))
        targets = federation.data.client(1).train[1]
        found = federation.objective_of(targets).class_weights
        assert found is not None
        all_targets = torch.cat([federation.data.client(client).train[1] for client in range(4)])
        counts = (targets if whose else all_targets).bincount(minlength=3)
        torch.testing.assert_close(found, counts.sum() / (3 * counts))


def test_a_run_stops_and_is_tuned_by_a_metric_of_its_task(on: Tiny, play: Play) -> None:
    config = on("regression", rounds=9, local__lr=1e-30, stop={"patience": 2, "metric": "r2"})
    folder = play(config)
    assert len({row["round"] for row in rows(folder)}) < 9
    assert rows(folder, metric="r2", split="validation")


def test_a_resumed_run_of_a_custom_loss_has_the_same_bytes(
    on: Tiny, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_loss.py").write_text(
        "def loss(outputs, targets, *, power=1.5):\n    return (outputs[:, 0] - targets).abs() ** power\n"
        "def mean(outputs, targets):\n    return (outputs[:, 0] - targets).abs().mean()\n"
        "def several(outputs, targets):\n    return (outputs - targets[:, None]).abs()\n"
        "def fixed(outputs, targets):\n    return (outputs[:, 0] - targets).detach().abs()\n"
    )
    config = on("regression", loss={"name": "own_loss:loss", "power": 1.2}, rounds=3)
    whole = play(config, "whole")
    assert [row for row in rows(whole, metric="loss", round=3, client=None) if row["value"] < 10]
    shown = describe_run(config)
    assert "regression, as the targets show: 1 output of the model, loss own_loss:loss" in shown
    for name, message in (
        ("mean", r"returns shape \(\) for 2 examples; it must return one loss for each, shape \(2,\)"),
        ("several", r"returns shape \(2, 1\) for 2 examples; .* as losses.flatten\(1\).mean\(1\) is"),
        ("fixed", "returns losses without a gradient"),
        ("none", "cannot be imported"),
    ):
        with pytest.raises(ConfigError, match=message):
            experiment.prepare(on("regression", loss={"name": f"own_loss:{name}"}))
    folder, seen = RunFolder(tmp_path / "parts"), []

    def interrupt(summary: Any) -> None:
        seen.append(summary)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, folder, interrupt)
    experiment.run(config, folder, seen.append)
    assert run_files(folder) == run_files(whole)


def test_a_custom_loss_weighs_several_labels(
    on: Tiny, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/tasks.md").read_text()
    [code] = re.findall(r"```python\n(# my_loss.py.*?)```", page, flags=re.DOTALL)
    (tmp_path / "my_weights.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    changes = {"loss": {"name": "my_weights:weighted", "pos_weight": [2.0, 5.0]}, "barriers__every": 0}
    folders = [play(on("multi-label", **changes, engine__cohort=cohort), f"of{cohort}") for cohort in (1, 2)]
    for one, other in zip(*map(rows, folders), strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=1e-4)
    federation = federation_of(on("multi-label", **changes))
    outputs, targets = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0, 0.0]] * 6)
    log_of = torch.nn.functional.logsigmoid
    expected = -(torch.tensor([2.0, 5.0]) * targets * log_of(outputs) + (1 - targets) * log_of(-outputs)).mean(1)
    torch.testing.assert_close(federation.objective.of_targets(outputs, targets), expected)


def test_a_model_without_a_gradient_is_named_where_a_cohort_is_asked_for(
    on: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "detached.py").write_text(
        "import torch\n\n\nclass Model(torch.nn.Linear):\n    def forward(self, x):\n"
        "        return super().forward(x).detach()\n\n\ndef model(shape, classes):\n"
        "    return Model(shape[0], classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^model.name = 'detached:model': .* without a gradient, .* from its code$"):
        experiment.prepare(on("classification", model={"name": "detached:model"}, engine__cohort=2))


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("regression", {"evaluation__metrics": ["auroc"]}, "'auroc', which the task 'regression' does not have; .* r2"),
        (
            "multi-label",
            {"stop": {"patience": 1, "metric": "rmse"}},
            "stop.metric = 'rmse', which the task",
        ),
        ("regression", {"loss": {"name": "huber", "delta": 0.0}}, "loss.delta = 0.0 must be greater than 0"),
        (
            "regression",
            {"loss": {"name": "cross-entropy"}},
            "loss.name = 'cross-entropy' does not fit the task",
        ),
        ("binary", {"loss": {"class_weights": [1.0]}}, r"class_weights = \[1.0\] has 1 numbers, and .* has 2 classes"),
        ("multi-label", {"loss": {"class_weights": "balanced"}}, "needs classes .*; use a custom loss with pos_weight"),
        ("binary", {"barriers__measures": ["similarity"]}, "'similarity', which compares most likely classes"),
        ("binary", {"barriers__measures": ["calibrated"]}, "'calibrated', which is defined for cross-entropy over"),
        ("regression", {"strategy": {"name": "fedrod"}}, "'FedRoD' is defined for cross-entropy over classes"),
        ("classification", {"strategy": {"name": "fedas"}, "loss": {"class_weights": "balanced"}}, "without weights"),
        ("binary", {"local__label_smoothing": 0.1}, "label_smoothing = 0.1 is for cross-entropy over classes"),
        ("regression", {"partition": {"scheme": "shards"}}, "'shards' splits by class, .*; set partition.bins = 10"),
        ("multi-label", {"partition": {"scheme": "dirichlet", "alpha": 1.0}}, "splits by class"),
        ("binary", {"partition__bins": 4}, "partition.bins = 4 is for numbers, and the task is 'binary'"),
        ("regression", {"data__task": "classification"}, "do not fit the task 'classification'"),
        ("classification", {"data__task": "multi-label"}, "do not fit the task 'multi-label'; give 0 and 1 as float32"),
    ],
)
def test_what_does_not_go_with_the_task_is_one_line(task: str, changes: dict[str, Any], message: str, on: Tiny) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        experiment.prepare(on(task, **changes))
    assert "\n" not in str(caught.value)


def test_numbers_are_split_by_their_quantiles_on_request(on: Tiny) -> None:
    federation = federation_of(on("regression", partition={"scheme": "shards", "classes_per_client": 1, "bins": 4}))
    targets = federation.data.dataset.train.targets
    own = [targets[federation.data.split.whole[client]] for client in range(4)]
    assert sorted(len(each) for each in own) == [50] * 4
    ends = sorted((float(each.min()), float(each.max())) for each in own)
    assert all(left[1] < right[0] for left, right in pairwise(ends))
    measured = federation.data.heterogeneity()
    assert measured.counts.totals.tolist() == [50] * 4
    assert measured.classes[0].startswith("up to ")


def bags_of_words(path: Path, columns: int = 512) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return counts of hashed words, ratings and whether a text is about a film."""
    with path.open(encoding="utf-8") as file:
        texts = list(csv.DictReader(file))[::8]
    counts = np.zeros((len(texts), columns), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in re.findall("[a-z]+", text["text"].lower()):
            counts[row, crc32(word.encode()) % columns] += 1
    ratings, films = [float(text["rating"]) for text in texts], [text["source"] == "movie" for text in texts]
    return counts, np.array(ratings), np.array(films)


@pytest.mark.slow
@pytest.mark.skipif(not SENTIMENT.exists(), reason=f"{SENTIMENT} is not on this machine")
@pytest.mark.parametrize("task", ["regression", "binary", "multi-label", "classification"])
def test_a_run_learns_something_of_real_texts(task: str, tiny: Tiny, play: Play, tmp_path: Path) -> None:
    inputs, ratings, films = bags_of_words(SENTIMENT)
    targets = {
        "regression": ratings,
        "binary": (ratings > 0).astype(np.float32),
        "multi-label": np.stack([ratings > 0, films], 1).astype(np.float32),
        "classification": films.astype(int),
    }[task]
    cut = len(inputs) * 4 // 5
    order, arrays = np.random.default_rng(1).permutation(len(inputs)), {"inputs": inputs, "targets": targets}
    parts = {"train": order[:cut], "test": order[cut:]}
    content = {f"{part}_{name}": arrays[name][at] for part, at in parts.items() for name in arrays}
    np.savez(tmp_path / "texts.npz", **content)
    metrics = {"regression": ["r2"], "binary": ["auroc", "macro-f1"], "multi-label": ["auroc"]}.get(task, ["auroc"])
    config = tiny(
        data={"name": "arrays", "path": str(tmp_path / "texts.npz")},
        partition={"scheme": "iid"},
        rounds=6,
        local={"lr": 0.001, "batch_size": 16, "optimizer": "adam"},
        evaluation={"metrics": metrics},
        barriers__every=6,
    )
    last = {row["metric"]: row["value"] for row in rows(play(config), round=6, client=None, model="global")}
    if task == "regression":
        assert last["r2"] > 0
        assert last["rmse"] < ratings.std()
    else:
        assert last["auroc"] > 0.6


@pytest.mark.parametrize("task", [*TARGETS, "next-token"])
def test_predictions_of_the_final_models_give_the_recorded_metrics(
    task: str, on: Tiny, tiny: Tiny, play: Play, tmp_path: Path
) -> None:
    changes = {"evaluation__save_predictions": True, "strategy": {"name": "layer_set", "shared": "body"}}
    if task == "next-token":
        data = {"name": "toy-text", "length": 6}
        config = tiny(data=data, partition={"scheme": "iid"}, model={"name": "char-lstm", "predict": "each"}, **changes)
    else:
        config = on(task, **changes, data__test_examples=40)
    folder = play(config)
    table = pd.read_parquet(folder.predictions)
    data = federation_of(config).data
    assert len(table) == len(data.dataset.test) + data.split.test.sizes.sum()
    for row in rows(folder, round=2):
        if row["split"] != "test" or row["metric"] not in ("accuracy", "rmse") or row["model"] == "average":
            continue
        if row["client"] is not None and row["model"] != "personalised":
            continue
        own = table[table["client"].isna() if row["client"] is None else table["client"] == row["client"]]
        target, prediction = (np.array(own[name].tolist()) for name in ("target", "prediction"))
        error = np.sqrt(np.square(target - prediction).mean())
        value = error if row["metric"] == "rmse" else (target == prediction).mean()
        assert value == pytest.approx(row["value"], rel=1e-5)
    outputs = np.array([np.stack(each).ravel() for each in table["outputs"]])
    assert outputs.dtype == np.float32
    if task == "regression":
        assert np.array_equal(outputs[:, 0], np.array(table["prediction"], dtype=np.float32))
    if task == "classification":
        assert np.array_equal(outputs.argmax(1), table["prediction"])
    if task == "next-token":
        last = np.array([np.stack(each).argmax(0) for each in table["outputs"]])
        assert np.array_equal(last, np.stack(table["prediction"].to_list()))
    if task == "regression":
        of_server = table[table["client"].isna()]
        assert np.allclose(NUMBERS[200:][of_server["example"]], of_server["target"])
        of_clients = table[table["client"].notna()]
        assert np.allclose(NUMBERS[:200][of_clients["example"]], of_clients["target"])


def test_predictions_that_need_gigabytes_are_announced_before_the_run(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(evaluation__save_predictions=True)
    assert "save_predictions = true writes" not in describe_run(config)
    data = federation_of(config).data
    examples = len(data.dataset.test) + int(data.split.test.sizes.sum())
    monkeypatch.setattr(predictions, "NOTED_BYTES", 4 * 10 * examples - 1)
    assert f"10 outputs for each of {examples} examples" in describe_run(config)
    monkeypatch.setattr(predictions, "NOTED_BYTES", 4 * 10 * examples)
    assert "save_predictions = true writes" not in describe_run(config)
