"""A run with faults continues, and has the numbers of a run in which exactly the faulty updates were left out."""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import ray.cloudpickle
import torch
from flwr.app import Context, Error, Message, MessageType
from flwr.clientapp import ClientApp

from fedsim.config import Config
from fedsim.errors import RunError
from fedsim.experiment import run as experiment
from fedsim.federation.client.app import client_app
from fedsim.federation.federation import Federation, SharedParts, federation_of
from fedsim.results import report
from fedsim.results.folder import RunFolder
from fedsim.strategy import messages

# Workers cannot import the tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

DEADLINE = 5.0
Faults = dict[tuple[int, int], str]  # by round and client
FAULTS: Faults = {(1, 3): "raise", (2, 1): "nan", (2, 0): "nothing", (3, 2): "slow", (4, 3): "die"}


class FaultyApp(ClientApp):
    """The clients' app with faults in known rounds."""

    def __init__(self, app: ClientApp, faults: Faults) -> None:
        super().__init__()
        self._inner = app
        self._faults = faults

    def __call__(self, message: Message, context: Context) -> Message:
        server_round = int(message.content[messages.CONFIG][messages.SERVER_ROUND])
        fault = self._faults.get((server_round, context.node_id))
        is_training = message.metadata.message_type == MessageType.TRAIN
        if is_training == (fault == "not evaluated"):
            fault = None
        if fault == "not evaluated":
            raise ValueError("no eyes")
        if fault == "left out":
            return Message(Error(2, "left out on purpose"), reply_to=message)
        if fault == "raise":
            self._inner(message, context)  # what it did before it failed does not count
            raise ValueError("no luck")
        if fault == "nothing":
            self._inner(message, context)
            return None  # type: ignore[return-value]
        if fault == "slow":
            while True:
                time.sleep(0.05)
        if fault == "die":
            os._exit(1)
        if fault == "nan":
            arrays = messages.decode(message.content.array_records[messages.ARRAYS])
            message.content[messages.ARRAYS] = messages.encode(
                {key: value * torch.nan for key, value in arrays.items()}
            )
        return self._inner(message, context)


def faulty_app(config: Config, faults: Faults, shared: SharedParts | None = None) -> ClientApp:
    return FaultyApp(client_app(federation_of(config, data=shared and shared.data)), faults)


@pytest.fixture
def play_with(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Faults, dict[str, Any]], RunFolder]:
    def run(name: str, faults: Faults, engine: dict[str, Any]) -> RunFolder:
        config = tiny(
            rounds=5,
            local={"lr": 0.1, "batch_size": 16, "momentum": 0.9, "optimizer_state": "keep"},
            strategy={"name": "layer_set", "shared": "body"},
            barriers={"every": 2, "pairs": 1, "examples": 40},
            engine=engine,
        )

        def app_maker(federation: Federation, cohort: int) -> Callable[[], ClientApp]:
            return partial(faulty_app, config, faults)

        monkeypatch.setattr(experiment, "app_maker", app_maker)
        return play(config, name)

    return run


def metrics(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def faults_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.faults.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_run_with_faults_has_the_numbers_of_one_without_these_updates(
    name: str, play_with: Callable[..., RunFolder], caplog: pytest.LogCaptureFixture
) -> None:
    faults = {place: fault for place, fault in FAULTS.items() if fault != "die" or name == "ray"}
    left_out = play_with("left out", dict.fromkeys(faults, "left out"), {"name": "local", "workers": 1})
    faulty = play_with("faulty", faults, {"name": name, "workers": 2, "deadline": DEADLINE})
    assert metrics(faulty) == metrics(left_out)
    for round_file in left_out.measured_files("barriers").values():
        assert (faulty.path / "barriers" / round_file.name).read_bytes() == round_file.read_bytes()
    recorded = {(row["round"], row["client"]): row["reason"] for row in faults_of(faulty) if row["stage"] == "train"}
    assert recorded.keys() == faults.keys()
    reasons = {
        "raise": "ValueError: no luck (test_faults.py, line ",
        "nan": "update is not finite",
        "nothing": "returned a NoneType",
        "slow": "timed out after 5 s",
        "die": "crashed twice",
    }
    for (server_round, client), fault in faults.items():
        said = [line for line in caplog.messages if line.startswith(f"round {server_round}: client {client} is left")]
        assert any(reasons[fault] in line for line in said)
        assert reasons[fault] in faulty.log.read_text()
        assert reasons[fault] in recorded[server_round, client]
    stages = report.read_result(faulty).faults["stage"].value_counts()
    assert stages["train"] == len(faults)
    restored = [row for row in faults_of(faulty) if row["stage"] == "worker"]
    assert bool(restored) == (name == "ray")
    assert all(row["restored_from"] < row["round"] and row["reason"] for row in restored)
    page = report.write_run(report.read_result(faulty), faulty.path).read_text()
    assert faulty.log.read_text().count("Traceback") == 1  # of what one client raised, whatever the engine
    asked = sum(map(len, json.loads(faulty.participants.read_text())))
    assert f"{len(faults)} of {asked} updates left out: " in page
    assert "not finite (1)" in page
    assert "ValueError in test_faults.py, line" in page


@pytest.mark.slow
def test_a_client_that_cannot_be_evaluated_is_left_out_of_that_evaluation_only(
    play_with: Callable[..., RunFolder], caplog: pytest.LogCaptureFixture
) -> None:
    engine = {"name": "local", "workers": 2}
    whole, partial_run = play_with("whole", {}, engine), play_with("partial", {(2, 1): "not evaluated"}, engine)
    # It has the same rows, without values: a mean must not pass over them.
    of_client = [(row["round"], row["client"]) == (2, 1) and row["model"] != "uploaded" for row in metrics(whole)]
    expected = [
        row | ({"value": None, "n": 0} if left else {}) for row, left in zip(metrics(whole), of_client, strict=True)
    ]
    assert metrics(partial_run) == expected
    assert not whole.faults.exists()
    [fault] = faults_of(partial_run)
    assert (fault["round"], fault["client"], fault["stage"]) == (2, 1, "evaluate")
    assert fault["reason"].startswith("ValueError: no eyes (test_faults.py, line ")
    page = report.write_run(report.read_result(partial_run), partial_run.path).read_text()
    assert "1 client evaluation without values: ValueError in test_faults.py, line" in page
    assert "round 2: client 1 is not evaluated: ValueError: no eyes (test_faults.py" in caplog.text
    nobody = {(1, client): "not evaluated" for client in range(4)}
    with pytest.raises(
        RunError, match=r"round 1: no client could be evaluated; client 0: ValueError: no eyes \(test_faults"
    ):
        play_with("nobody", nobody, engine)
