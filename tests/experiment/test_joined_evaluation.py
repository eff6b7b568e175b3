"""Clients that have the same model are evaluated at once, with the numbers of one client after the other."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.config import Config
from fedsim.experiment import evaluation, joined_evaluation
from fedsim.experiment import run as experiment
from fedsim.federation.engines.local import LocalEngine
from fedsim.models.layers import LayerGroup
from fedsim.models.norms import counter_keys
from fedsim.models.params import Params
from fedsim.models.purity import is_by_example
from fedsim.results.folder import RunFolder
from fedsim.strategy import ClientUpdate
from fedsim.training.evaluation import evaluate, evaluate_joined
from strategies.fedavg import FedAvg
from tests.conftest import run_files, run_until

Tiny = Callable[..., Config]
Play = Callable[..., RunFolder]
TEXT = {
    "data": {"name": "toy-text", "length": 6},
    "partition": {"scheme": "iid"},
    "model": {"name": "char-lstm", "predict": "each", "hidden": 16, "depth": 1},
}
CASES: dict[str, dict[str, Any]] = {
    "all layers": {"evaluation": {"metrics": ["macro-f1", "accuracy-by-class"], "on": ["test", "server"]}},
    "unseen clients, some in a round": {"unseen": 0.4, "participation": 0.5, "features": {"skew": "noise"}},
    "personal head": {"strategy": {"name": "layer_set", "shared": "body"}},
    "layers in turn": {"strategy": {"name": "layer_cycle"}, "evaluation": {"on": ["test", "server"]}},
    "a personal model beside the global one": {"strategy": {"name": "ditto"}},
    "next tokens": {**TEXT, "evaluation": {"metrics": ["perplexity"]}},
}


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "can_join", lambda *_: False)


def watching(see: Callable[[list[str]], None]) -> Callable[[LocalEngine, list[Any]], Any]:
    """Return the engine's `handle`, which also shows the models that each client is asked to measure."""
    handle = LocalEngine.handle

    def watched(self: LocalEngine, sent: list[Any]) -> Any:
        for each in sent:
            if "models" in each.content["config"]:
                see(list(each.content["config"]["models"]))
        return handle(self, sent)

    return watched


def check_close(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> None:
    assert [{**row, "value": 0} for row in found] == [{**row, "value": 0} for row in expected]
    values = [[np.nan if row["value"] is None else row["value"] for row in each] for each in (found, expected)]
    assert np.allclose(*values, rtol=1e-6, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_joined_clients_have_the_numbers_of_one_after_the_other(
    case: str, tiny: Tiny, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(**CASES[case], barriers={"every": 0})
    monkeypatch.setattr(joined_evaluation, "examples_at_a_time", lambda _: 7)  # so that several groups are measured
    joined = play(config, "joined")
    one_by_one(monkeypatch)
    check_close(rows(joined), rows(play(config, "alone")))


def test_of_several_labels_too(tiny: Tiny, play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    targets = np.stack([inputs[:, 0] > 0, inputs[:, 1] > 0.5], 1).astype(np.float32)
    arrays = {"train_inputs": inputs[:100], "test_inputs": inputs[100:]}
    np.savez(tmp_path / "labels.npz", train_targets=targets[:100], test_targets=targets[100:], **arrays)
    data = {"name": "arrays", "path": str(tmp_path / "labels.npz")}
    evaluated = {"metrics": ["macro-f1", "auroc"]}
    config = tiny(data=data, partition={"scheme": "iid"}, evaluation=evaluated, barriers={"every": 0})
    joined = play(config, "joined")
    one_by_one(monkeypatch)
    check_close(rows(joined), rows(play(config, "alone")))


@pytest.mark.parametrize("strategy", [{"name": "fedavg"}, {"name": "layer_set", "shared": "body"}])
def test_workers_and_a_stop_change_no_byte(strategy: dict[str, Any], tiny: Tiny, play: Play, tmp_path: Path) -> None:
    settings = {"rounds": 3, "checkpoint_every": 1, "strategy": strategy, "barriers": {"every": 0}}
    whole = run_files(play(tiny(**settings, engine={"workers": 1}), "whole"))
    assert run_files(play(tiny(**settings, engine={"workers": 3}), "three")) == whole
    config = tiny(**settings, engine={"workers": 2})
    stopped = run_until(config, RunFolder(tmp_path / "stopped"), 2)
    experiment.run(config, stopped, lambda summary: None)
    assert run_files(stopped) == whole


class Remembering(FedAvg):
    """Averages all in two rounds and then the body, and gives clients the head that it remembers."""

    def shared(self, server_round: int) -> LayerGroup:
        return self.layers.group("all" if server_round <= 2 else "body")

    def for_client(self, server_round: int, client: int) -> Params:
        return self.global_model | self.memory

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        averaged = self.average(updates)
        self.memory = self.memory | {
            key: averaged[key] for key in self.keys(self.layers.group("head")) if key in averaged
        }
        return averaged


@pytest.mark.parametrize("cohort", [1, 2])
def test_a_restart_does_not_change_who_has_the_global_model(
    cohort: int, tiny: Tiny, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(LocalEngine, "handle", watching(lambda models: asked.append(len(models))))
    engine = {"workers": 1, "cohort": cohort}
    strategy = {"name": f"{__name__}:Remembering"}
    config = tiny(rounds=3, checkpoint_every=1, strategy=strategy, barriers={"every": 0}, engine=engine)
    whole = play(config, "whole")
    assert not asked
    stopped = run_until(config, RunFolder(tmp_path / "stopped"), 2)
    experiment.run(config, stopped, lambda summary: None)
    assert not asked
    assert run_files(stopped) == run_files(whole)


@pytest.mark.ray
def test_both_engines_give_the_same_bytes(tiny: Tiny, play: Play) -> None:
    settings = {"strategy": {"name": "layer_set", "shared": "body"}, "barriers": {"every": 0}}
    runs = [play(tiny(**settings, engine={"name": name, "workers": 2}), name) for name in ("local", "ray")]
    assert run_files(runs[0]) == run_files(runs[1])


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, []),
        ({"strategy": {"name": "layer_set", "shared": "body"}}, ["personalised"]),
        ({"strategy": {"name": "ditto"}}, ["personalised"]),
        ({"strategy__buffers": "recompute"}, ["personalised", "global"]),
        ({"evaluation": {"models": ["personalised", "global", "knn"]}}, ["personalised", "global", "knn"]),
        ({"model": {"name": "mixing:make"}}, ["personalised", "global"]),
    ],
)
def test_clients_are_asked_for_what_only_they_can_measure(
    changes: dict[str, Any],
    asked: list[str],
    tiny: Tiny,
    play: Play,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    code = (
        "from torch import nn\n\ndef make(shape, classes):\n    norm = nn.BatchNorm1d(4, track_running_stats=False)\n"
    )
    code += "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[-1] * shape[-2], 4), norm, nn.Linear(4, classes))\n"
    (tmp_path / "mixing.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[list[str]] = []
    monkeypatch.setattr(LocalEngine, "handle", watching(seen.append))
    play(tiny(rounds=1, barriers={"every": 0}, **changes))
    assert {tuple(each) for each in seen} == ({tuple(asked)} if asked else set())


@pytest.mark.parametrize("on", [["test"], ["test", "server"]])
def test_the_global_model_is_evaluated_on_the_servers_test_data_once_a_round(
    on: list[str], tiny: Tiny, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[float] = []
    measure = evaluation.ServerEvaluation.metrics

    def counted(self: evaluation.ServerEvaluation, params: Params) -> dict[str, float]:
        measured = measure(self, params)
        passes.append(measured["loss"])
        return measured

    monkeypatch.setattr(evaluation.ServerEvaluation, "metrics", counted)
    found = rows(play(tiny(evaluation={"on": on}, barriers={"every": 0})))
    of_server = [row["value"] for row in found if (row["client"], row["metric"]) == (None, "loss")]
    assert passes == of_server
    clients = [row["value"] for row in found if (row["split"], row["metric"]) == ("server", "loss")]
    assert clients == [loss for loss in passes for _ in range(4) if "server" in on]


def test_a_client_whose_loss_is_not_finite_is_asked_for_the_reason(
    tiny: Tiny, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(rounds=1, barriers={"every": 0})
    measure = evaluation.measure_on_clients

    def broken(*arguments: Any) -> dict[int, dict[str, float]]:
        found = measure(*arguments)
        return found | ({1: found[1] | {"loss": np.nan}} if 1 in found else {})

    monkeypatch.setattr(evaluation, "measure_on_clients", broken)
    found = play(config, "broken")
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "can_join", lambda *_: False)
    check_close(rows(found), rows(play(config, "alone")))


def test_a_client_for_whose_data_the_model_raises_is_alone_without_values(
    tiny: Tiny, play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = "from torch import nn\n\nclass Strict(nn.Linear):\n    def forward(self, x):\n"
    code += "        if not self.training and x.max() > 4:\n            raise ValueError('out of range')\n"
    code += "        return super().forward(x)\n\ndef make(shape, classes):\n    return Strict(shape[0], classes)\n"
    (tmp_path / "strict.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    inputs = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    targets = (inputs[:, 0] > 0).astype(np.int64)
    inputs[40:50] *= 20
    arrays = {"train_inputs": inputs[:100], "test_inputs": inputs[100:]}
    np.savez(tmp_path / "spikes.npz", train_targets=targets[:100], test_targets=targets[100:], **arrays)
    data = {"name": "arrays", "path": str(tmp_path / "spikes.npz")}
    settings = {
        "data": data,
        "partition": {"scheme": "iid"},
        "model": {"name": "strict:make"},
        "barriers": {"every": 0},
    }
    monkeypatch.setattr(joined_evaluation, "examples_at_a_time", lambda _: 2)  # so that groups have few clients
    joined = play(tiny(**settings), "joined")
    reasons = {line["client"]: line["reason"] for line in map(json.loads, joined.faults.read_text().splitlines())}
    assert 0 < len(reasons) < tiny(**settings).clients
    assert all("ValueError: out of range" in reason for reason in reasons.values())
    one_by_one(monkeypatch)
    check_close(rows(joined), rows(play(tiny(**settings), "alone")))


def test_parts_are_evaluated_as_each_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double().eval()
    parts = [(torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))) for n in (1, 130, 7, 60)]
    parts[2][1][3] = -100  # padding
    for (inputs, targets), found in zip(parts, evaluate_joined(model, parts, keep_outputs=True), strict=True):
        alone = evaluate(model, inputs, targets, keep_outputs=True)
        assert (found.n, found.loss, found.error) == pytest.approx((alone.n, alone.loss, alone.error), rel=1e-12)
        assert found.outputs is not None
        assert alone.outputs is not None
        assert torch.allclose(found.outputs, alone.outputs, rtol=1e-12)


class Mean(nn.Module):
    """Subtracts the mean of the batch, behind a head of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - x.mean(0))


def test_a_model_that_mixes_the_examples_of_a_batch_is_found_also_behind_zeros() -> None:
    probes = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert not is_by_example(Mean(), probes)
    plain = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    assert is_by_example(plain, probes)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


def test_counters_of_normalisations_decide_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert counter_keys(model) == {"0.num_batches_tracked"}
