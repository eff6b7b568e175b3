import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray.cloudpickle
import torch
from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.config import Config
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.federation.engines.grid import Engine
from fedsim.federation.engines.local import LocalEngine
from fedsim.federation.engines.ray import RayEngine
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.strategy import messages
from tests.conftest import run_files

# Workers cannot import the tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def counting_app(step: int) -> ClientApp:
    """A client that remembers the sum of what it was asked to add; client 3 always fails."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 3:
            raise ValueError("client 3 has no luck")
        stored = messages.decode(context.state.array_records["sum"]) if "sum" in context.state else {}
        total = stored.get("value", torch.zeros(2)) + step
        context.state["sum"] = messages.encode({"value": total})
        metrics = MetricRecord({"client": context.node_id, "sum": total.sum().item()})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


ENGINES = [
    pytest.param(partial(LocalEngine, workers=1), id="local-1"),
    pytest.param(partial(LocalEngine, workers=3), id="local-3"),
    pytest.param(partial(RayEngine, workers=2), id="ray-2", marks=pytest.mark.ray),
]


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest) -> Callable[[], Engine]:
    return lambda: request.param(partial(counting_app, 2), 5)


def ask(engine: Engine, clients: Iterator[int] | range = range(5)) -> list[Message]:
    sent = [Message(RecordDict(), client, MessageType.TRAIN) for client in clients]
    return list(engine.send_and_receive(sent))


def sums(replies: list[Message]) -> dict[int, float]:
    records = [reply.content["metrics"] for reply in replies if reply.has_content()]
    return {record["client"]: record["sum"] for record in records}


def test_clients_keep_their_state_and_a_failure_stays_with_its_client(
    make: Callable[[], Engine], tmp_path: Path
) -> None:
    with make() as engine:
        first = ask(engine)
        assert sums(first) == {0: 4.0, 1: 4.0, 2: 4.0, 4: 4.0}
        failed = [reply for reply in first if reply.has_error()]
        assert [reply.metadata.src_node_id for reply in failed] == [3]
        assert failed[0].error.reason.startswith("ValueError: client 3 has no luck (test_engines.py, line ")
        assert sums(ask(engine, range(2))) == {0: 8.0, 1: 8.0}
        engine.save_clients(tmp_path, [0, 1, 2], 7)
        ask(engine)
    with make() as engine:
        engine.load_clients(tmp_path, {0: 7, 1: 7, 2: 7})
        assert sums(ask(engine)) == {0: 12.0, 1: 12.0, 2: 8.0, 4: 4.0}


def test_pushed_messages_are_pulled_once_by_their_ids() -> None:
    with LocalEngine(partial(counting_app, 1), 5, 1) as engine:
        ids = list(engine.push_messages([Message(RecordDict(), client, MessageType.TRAIN) for client in (4, 0)]))
        assert sums(list(engine.pull_messages(ids[:1]))) == {4: 2.0}
        assert sums(list(engine.pull_messages(ids))) == {0: 2.0}


CONFIGS = {
    "layer cycle, some of the clients": {
        "rounds": 3,
        "clients": 5,
        "participation": 0.6,
        "strategy": {"name": "layer_cycle"},
        "local": {"lr": 0.1, "momentum": 0.9, "optimizer_state": "keep"},
    },
    "batch norm, recomputed": {
        "clients": 3,
        "model": {"name": "resnet18", "norm": "batch", "width": 2},
        "strategy": {"name": "layer_set", "shared": "!norm", "buffers": "recompute"},
        "local": {"lr": 0.05, "batch_size": 30},
        "barriers": {"every": 2, "groups": ["full", "norm"], "examples": 40},
    },
    "augmented images, noisy by client": {
        "data": {"name": "toy", "examples": 120, "shape": [1, 12, 12], "flip": True, "crop": 1},
        "partition": {"scheme": "domain"},
        "features": {"skew": "noise"},
        "model": {"name": "lenet5"},
        "barriers": {"every": 2, "examples": 20},
    },
    "text with tied embeddings and dropout": {
        "clients": 3,
        "data": {"name": "toy-text", "examples": 120},
        "partition": {"scheme": "natural"},
        "model": {"name": "gpt", "depth": 1, "width": 8, "dropout": 0.1},
        "strategy": {"name": "layer_set", "shared": "head"},
        "barriers": {"every": 2, "examples": 20},
    },
    "a mixture of experts": {
        "clients": 3,
        "data": {"name": "toy-text", "examples": 120},
        "partition": {"scheme": "natural"},
        "model": {"name": "gpt", "depth": 1, "width": 8, "num_experts": 3, "top_k": 2, "num_shared_experts": 1},
        "strategy": {"name": "matched_average"},
        "barriers": {"every": 2, "examples": 20, "matching": ["none", "weights"]},
    },
    "control variates, and clients that never train": {
        "rounds": 3,
        "clients": 6,
        "participation": 0.6,
        "unseen": 0.2,
        "strategy": {"name": "scaffold"},
        "evaluation": {"models": ["personalised", "global", "trained", "fine-tuned"], "fine_tune_epochs": 1},
    },
    "personal models with momentum of their own": {
        "rounds": 3,
        "participation": 0.5,
        "strategy": {"name": "ditto"},
        "local": {"lr": 0.1, "momentum": 0.9, "optimizer_state": "keep"},
    },
    "AdamW with a schedule over the run, and a frozen layer": {
        "rounds": 3,
        "clients": 5,
        "participation": 0.6,
        "model": {"name": "mlp", "hidden": [12, 8], "freeze": "fc2"},
        "strategy": {"name": "layer_set", "shared": "head"},
        "local": {"optimizer": "adamw", "lr": 0.01, "optimizer_state": "keep", "schedule": "cosine", "warmup": 1},
    },
}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_all_engines_give_the_same_files_byte_for_byte(
    name: str, tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    engines = [("local", 1), ("local", 2), ("ray", 2)]
    if name == next(iter(CONFIGS)):  # a worker of Ray takes seconds to start
        engines += [("ray", 1), ("ray", 2)]
    runs = [
        run_files(play(tiny(**CONFIGS[name], engine={"name": engine, "workers": workers}), f"run{number}"))
        for number, (engine, workers) in enumerate(engines)
    ]
    assert {"metrics.jsonl", "communication.jsonl", "barriers/round-00002.parquet"} < runs[0].keys()
    assert any(path.endswith("global.safetensors") for path in runs[0])
    for other in runs[1:]:
        assert other == runs[0]


# An engine of Ray takes seconds to start, so one config is enough for it.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "engines"),
    [
        pytest.param(name, [{"cohort": 3}, {"cohort": 2, "name": "ray", "workers": 2}], marks=pytest.mark.ray)
        if name == next(iter(CONFIGS))
        else (name, [{"cohort": 3}])
        for name in CONFIGS
    ],
    ids=list(CONFIGS),
)
def test_cohorts_give_the_numbers_of_one_after_the_other_to_float_tolerance(
    name: str, engines: list[dict[str, Any]], tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    alone, *together = (
        play(tiny(**CONFIGS[name], engine={"workers": 1} | each), f"run{number}")
        for number, each in enumerate([{"cohort": 1}, *engines])
    )
    expected = read_rows(alone.metrics)
    # Statistics over a few examples multiply rounding, so that later rounds of such a run have numbers of their own.
    compared = (expected["metric"] == "loss") & ((expected["round"] == 1) | ("batch norm" not in name))
    for folder in together:
        found = read_rows(folder.metrics)
        pd.testing.assert_frame_equal(found.drop(columns="value"), expected.drop(columns="value"))
        np.testing.assert_allclose(found["value"][compared], expected["value"][compared], rtol=1e-3)
        assert folder.communication.read_bytes() == alone.communication.read_bytes()
        assert folder.read_env()["cohort"] > 1


def test_only_the_newest_two_checkpoints_and_their_clients_are_kept(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    own = {"name": "layer_set", "shared": "body"}
    folder = play(tiny(rounds=4, clients=5, participation=0.4, checkpoints__keep="last", strategy=own))
    checkpoints = Checkpoints(folder.checkpoints)
    assert checkpoints.newest() == 4
    assert [path.name for path in sorted(folder.checkpoints.iterdir())] == ["clients", "kept", "round-00004"]
    assert checkpoints.rounds() == [3, 4]
    took_part = {client for line in json.loads(folder.participants.read_text()) for client in line}
    assert {int(path.name[:6]) for path in (folder.checkpoints / "clients").iterdir()} == took_part


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "expected"), [({}, "0 0"), ({"FLWR_TELEMETRY_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "1"}, "1 1")]
)
def test_telemetry_is_off_unless_the_user_turns_it_on(own: dict[str, str], expected: str) -> None:
    script = (
        "import os, fedsim.federation.engines.ray;"
        "from flwr.supercore.telemetry import FLWR_TELEMETRY_ENABLED as flower;"
        "print(flower, os.environ['RAY_USAGE_STATS_ENABLED'])"
    )
    switches = ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED")
    environment = {key: value for key, value in os.environ.items() if key not in switches} | own
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == expected.split()
