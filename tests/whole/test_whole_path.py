"""From the real data to the numbers of a report."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.config import Config
from fedsim.data.fashion_mnist import DEBIAN_FOLDER
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.federation.client import app as client_module
from fedsim.federation.federation import federation_of
from fedsim.models.params import load_state_
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.report import read_result, write_run
from fedsim.seeds import rng
from fedsim.strategy import LocalPlan
from fedsim.strategy.participants import draw_participants
from fedsim.training import train_
from fedsim.training.evaluation import evaluate
from tests.conftest import run_files

PLAIN_CHARTS = {"bytes-by-layer", "clients", "cosines", "curves", "distances", "partition", "seconds", "strip"}
FASHION = {
    "rounds": 4,
    "clients": 5,
    "data": {"name": "fashion-mnist", "train_examples": 3000, "test_examples": 500},
    "model": {"name": "cnn"},
    "local": {"lr": 0.1, "epochs": 2},
    "barriers": {"every": 4, "examples": 200, "pairs": 1},
    "engine": {"workers": 0},
}


@pytest.fixture(scope="module")
def _data() -> None:
    if not DEBIAN_FOLDER.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")


@pytest.mark.slow
@pytest.mark.usefixtures("_data")
def test_fedavg_learns_fashion_mnist(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    data = FASHION["data"] | {"train_examples": 1500}
    folder = play(tiny(**FASHION | {"data": data}, partition={"scheme": "dirichlet", "alpha": 10.0}))
    result = read_result(folder)
    # Chance is 0.1. 300 examples a client, 4 rounds of two epochs.
    assert result.on_server("global").loc[4] > 0.6
    assert result.by_client("personalised").mean() > 0.6
    losses = result.of("global", "loss", server=True)["value"].to_numpy()
    assert (np.diff(losses) < 0).all()
    barriers = result.barriers.query("other == -1")
    assert set(barriers["group"]) == {"full", "conv1", "conv2", "fc1", "fc2"}
    assert len(barriers) == 5 * 5
    page = write_run(result, tmp_path).read_text()
    charts = set(re.findall(r'data-chart="([^"]+)"', page))
    in_both = {f"{kind}-{metric}" for kind in ("barriers", "pairs", "paths") for metric in ("loss", "error")}
    assert charts == in_both | PLAIN_CHARTS


@pytest.mark.slow
@pytest.mark.usefixtures("_data")
def test_under_strong_skew_a_personal_head_beats_the_global_model_on_the_clients_data(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    data = FASHION["data"] | {"train_examples": 1000}
    settings = FASHION | {"data": data, "partition": {"scheme": "dirichlet", "alpha": 0.1}, "barriers": {"every": 0}}
    results = {
        shared: read_result(play(tiny(**settings, strategy={"name": "layer_set", "shared": shared}), shared))
        for shared in ("all", "body")
    }
    personalised = {shared: result.by_client("personalised").mean() for shared, result in results.items()}
    assert personalised["body"] > personalised["all"] + 0.05
    global_ = {shared: result.on_server("global").iloc[-1] for shared, result in results.items()}
    assert global_["all"] > global_["body"]


def test_the_rows_of_a_run_are_complete_and_mean_what_they_say(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(rounds=3, participation=0.5, strategy={"name": "layer_set", "shared": "head"})
    metrics = read_rows(play(config).metrics)
    assert set(metrics["round"]) == {1, 2, 3}
    per_round = metrics[metrics["round"] == 3]
    kinds = per_round.assign(client=per_round["client"].notna()).groupby(["client", "model", "split", "metric"]).size()
    # Two of four clients train, all four are evaluated, the server evaluates its own model.
    assert kinds.to_dict() == {
        (False, "global", "test", "accuracy"): 1,
        (False, "global", "test", "loss"): 1,
        (True, "global", "test", "accuracy"): 4,
        (True, "global", "test", "loss"): 4,
        (True, "personalised", "test", "accuracy"): 4,
        (True, "personalised", "test", "loss"): 4,
        (True, "personalised", "validation", "accuracy"): 4,
        (True, "personalised", "validation", "loss"): 4,
        (True, "uploaded", "train", "backward_examples"): 2,
        (True, "uploaded", "train", "forward_examples"): 2,
        (True, "uploaded", "train", "loss"): 2,
    }
    average = metrics.query("model == 'average'")
    assert set(average["round"]) == {2}


def test_a_tied_embedding_travels_once_and_is_one_with_the_classifier(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(
        data={"name": "toy-text", "examples": 160, "classes": 6, "length": 5},
        partition={"scheme": "natural"},
        model={"name": "gpt", "depth": 1, "heads": 2, "width": 8},
        strategy={"name": "layer_set", "shared": "head"},
        barriers={"every": 2, "examples": 20},
    )
    folder = play(config)
    traffic = read_rows(folder.communication)
    assert set(traffic["layer"]) == {"wte"}
    assert traffic.query("round == 1")["up"].tolist() == [6 * 8 * 4] * 4
    model = federation_of(config).model()
    load_state_(model, Checkpoints(folder.checkpoints).global_model(2))
    assert torch.equal(model.lm_head.weight, model.wte.weight)
    barriers = read_result(folder).barriers
    assert {"wte", "wpe", "full"} <= set(barriers["group"])
    assert (barriers.query("group == 'wte'")["loss_own_base"].abs() > 1e-6).any()


def test_clients_train_on_augmented_images(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    plain = {"name": "digits", "train_examples": 200, "test_examples": 60}
    losses = [
        read_rows(play(tiny(data=data, barriers={"every": 0}), name).metrics).query("split == 'train'")["value"].mean()
        for data, name in ((plain, "plain"), (plain | {"flip": True}, "flipped"))
    ]
    assert losses[1] != losses[0]


def test_text_is_learnt(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    config = tiny(
        rounds=4,
        data={"name": "toy-text", "examples": 400, "classes": 5, "speakers": 4},
        partition={"scheme": "natural"},
        model={"name": "gpt", "depth": 1, "heads": 2, "width": 16},
        local={"epochs": 3, "lr": 0.1, "momentum": 0.9, "batch_size": 16},
        strategy={"name": "local"},
        barriers={"every": 0},
    )
    # Each speaker's favourite step comes in 0.8 + 0.2 / 5 of all cases, and no other rule is there to learn.
    accuracy = read_result(play(config)).by_client("personalised").mean()
    assert 0.7 < accuracy < 0.9


def test_traffic_is_that_of_the_shared_layers_by_hand(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    traffic = read_rows(play(tiny(strategy={"name": "layer_set", "shared": "head"})).communication)
    # The head is 12 x 10 weights and 10 biases of 4 bytes; nothing was averaged before round 1.
    head = (12 * 10 + 10) * 4
    assert set(traffic["layer"]) == {"fc2"}
    assert traffic.groupby("round")[["down", "up"]].sum().to_numpy().tolist() == [[0, 4 * head], [4 * head, 4 * head]]


def test_with_everything_shared_the_personalised_model_is_the_global_one(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    result = read_result(play(tiny()))
    assert result.by_client("personalised").equals(result.by_client("global"))


def test_local_training_leaves_the_global_model_as_it_was(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    result = read_result(play(tiny(strategy={"name": "local"})))
    assert result.on_server("global").nunique() == 1
    assert result.bytes_total == 0
    assert result.by_client("personalised").mean() > result.by_client("global").mean()


def test_a_client_trains_on_none_of_its_test_examples(tiny: Callable[..., Config]) -> None:
    federation = federation_of(tiny(partition={"scheme": "dirichlet", "alpha": 0.3, "test": 0.3, "validation": 0.1}))
    seen: list[int] = []
    for client in range(4):
        train, validation, test = federation.data.split.client(client)
        assert len(test) == round(0.3 * len(federation.data.split.whole[client]))
        assert len(train) > 0
        seen += [*train, *validation, *test]
    assert len(set(seen)) == len(seen) == 200


def test_the_barriers_of_a_run_weigh_each_client_by_its_training_examples(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(partition={"scheme": "dirichlet", "alpha": 0.2})
    federation = federation_of(config)
    sizes = [len(federation.data.split.train[client]) for client in range(4)]
    assert len(set(sizes)) > 1
    table = read_result(play(config)).barriers.query("group == 'fc1' and other == -1").sort_values("base")
    own = table["loss"] - table["loss_own_base"]
    mean_ends = table["loss"] - table["loss_mean_ends"]
    assert np.allclose(mean_ends, np.average(own, weights=sizes), atol=1e-12)
    assert not np.allclose(mean_ends, own.mean(), atol=1e-6)


def slow_run(config: Config) -> tuple[dict, dict]:
    """A federated run as one would write it down: no messages, engines or threads. For `layer_set` only."""
    federation = federation_of(config)
    model, keys = federation.model(), federation.layers.keys(federation.layers.group(config.strategy.shared))
    server, own, momentum, last, values = dict(federation.initial), {}, {}, {}, {}
    averaged = 0

    def measure(params: dict, data: tuple, *name: object) -> None:
        model.load_state_dict(params)
        result = evaluate(model, *data)
        values[*name, "loss"], values[*name, "accuracy"] = result.loss, result.accuracy

    def taken(client: int) -> dict:
        fresh = averaged and averaged >= last.get(client, 0)
        return own.get(client, dict(federation.initial)) | ({key: server[key] for key in keys} if fresh else {})

    for server_round in range(1, config.rounds + 1):
        sums, total = dict.fromkeys(keys, 0.0), 0
        for client in draw_participants(config.seed, server_round, config.clients, config.participation):
            data = federation.data.client(client)
            model.load_state_dict(taken(client))
            stream = rng(config.seed, "train", server_round, client)
            result = train_(model, *data.train, LocalPlan(), config.local.settings, stream, momentum.get(client))
            values[server_round, client, "train", "uploaded", "loss"] = result.loss
            for way in ("forward", "backward"):
                values[server_round, client, "train", "uploaded", f"{way}_examples"] = result.examples_seen
            momentum[client] = {key: value.clone() for key, value in result.optimizer_state.items()}
            own[client] = {key: value.clone() for key, value in model.state_dict().items()}
            last[client] = server_round
            weight = len(data.train[1])
            sums = {key: sums[key] + weight * own[client][key].double() for key in keys}
            total += weight
        server |= {key: (value / total).float() for key, value in sums.items()}
        averaged = server_round
        measure(server, federation.data.test(), server_round, None, "test", "global")
        for client in range(config.clients):
            data = federation.data.client(client)
            measure(taken(client), data.validation, server_round, client, "validation", "personalised")
            measure(taken(client), data.test, server_round, client, "test", "personalised")
            measure(server, data.test, server_round, client, "test", "global")
    return server, values


def test_a_run_agrees_with_one_that_is_written_down_plainly(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    config = tiny(
        rounds=3,
        clients=5,
        participation=0.6,
        model={"name": "mlp", "hidden": [12, 8]},
        strategy={"name": "layer_set", "shared": "body"},
        local={"lr": 0.1, "batch_size": 7, "momentum": 0.9, "optimizer_state": "keep"},
        barriers={"every": 0},
    )
    server, values = slow_run(config)
    folder = play(config)
    final = Checkpoints(folder.checkpoints).global_model(3)
    assert all(torch.allclose(final[key], server[key], rtol=1e-5, atol=1e-7) for key in server)
    rows = read_rows(folder.metrics).to_dict("records")
    got = {
        (r["round"], None if np.isnan(r["client"]) else int(r["client"]), r["split"], r["model"], r["metric"]): r[
            "value"
        ]
        for r in rows
    }
    assert got.keys() == values.keys()
    assert got == pytest.approx(values, rel=1e-4)


def test_dropout_is_drawn_from_the_seed_whatever_the_engine(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dropout_model.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    runs = [play(tiny(model={"name": "dropout_model:make"}, engine={"workers": n}), f"workers{n}") for n in (1, 2)]
    assert run_files(runs[0]) == run_files(runs[1])


def test_a_client_that_raises_is_left_out_and_the_run_says_so(
    tiny: Callable[..., Config],
    play: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny(barriers={"every": 0})
    unlucky = len(federation_of(config).data.client(2).train[1])
    train = client_module.train_

    def fail(model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, **options: object) -> object:
        if len(targets) == unlucky:
            raise ValueError("no luck")
        return train(model, inputs, targets, **options)

    monkeypatch.setattr(client_module, "train_", fail)
    folder = play(config)
    faults = read_rows(folder.faults)
    assert faults[["round", "client"]].to_numpy().tolist() == [[1, 2], [2, 2]]
    [reason] = set(faults["reason"])
    assert reason.startswith("ValueError: no luck (test_whole_path.py, line ")
    assert f"round 1: client 2 is left out of the average: {reason}" in caplog.text
    assert folder.log.read_text().count("Traceback") == 1  # of two rounds
    assert set(read_rows(folder.communication)["client"]) == {0, 1, 2, 3}
