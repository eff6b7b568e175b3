import builtins
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.cloudpickle
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.errors import ConfigError, RunError
from fedsim.federation.engines import starting
from fedsim.federation.engines import workers as workers_module
from fedsim.federation.engines.actor import Actor
from fedsim.federation.engines.grid import Engine
from fedsim.federation.engines.local import LocalEngine
from fedsim.federation.engines.ray import RayEngine
from fedsim.federation.engines.state_files import StateFiles
from fedsim.federation.engines.workers import Workers
from fedsim.strategy.messages import TensorArray
from tests import ray_workers

# Workers cannot import the tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.ray

CLIENTS = 6  # of two workers: 0, 2, 4 and 1, 3, 5


def obedient_app() -> ClientApp:
    """Clients that remember a running sum of what they get, and do what the message's config says."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        order = message.content.config_records["config"]
        if order["do"] == "die" or (order["do"] == "die once" and not Path(str(order["mark"])).exists()):
            Path(str(order["mark"])).touch()
            os._exit(1)
        if order["do"] == "wait once" and not Path(str(order["mark"])).exists():
            Path(str(order["mark"])).touch()
            time.sleep(600)
        if order["do"] == "reset":
            context.state = RecordDict()
            return reply(message, context)
        if order["do"] == "raise":
            raise ValueError("no luck")
        if order["do"] in ("SystemExit", "KeyboardInterrupt", "GeneratorExit"):
            raise getattr(builtins, str(order["do"]))
        if order["do"] == "sleep":
            time.sleep(600)
        got = message.content.array_records["arrays"]["x"].numpy()
        before = context.state.array_records["sum"]["x"].numpy() if "sum" in context.state else 0
        context.state["sum"] = record_of(torch.from_numpy(before + got * (context.node_id + 1)))
        return None if order["do"] == "nothing" else reply(message, context)  # type: ignore[return-value]

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return reply(message, context)

    return app


def reply(message: Message, context: Context) -> Message:
    sums = context.state.array_records.get("sum", ArrayRecord())
    metrics = MetricRecord({"client": context.node_id, "worker": os.getpid()})
    return Message(RecordDict({"arrays": sums, "metrics": metrics}), reply_to=message)


def record_of(tensor: torch.Tensor) -> ArrayRecord:
    record = ArrayRecord()
    record["x"] = TensorArray(tensor)
    return record


def ask(
    engine: Engine,
    server_round: int,
    orders: Mapping[int, str] | None = None,
    kind: str = MessageType.TRAIN,
    mark: Path = Path("none"),
) -> list[Message]:
    """Let all clients do as they are told, by default add a vector of the round to their sum."""
    shared = record_of(torch.arange(3, dtype=torch.float64) / server_round)
    sent = []
    for client in range(CLIENTS):
        config = ConfigRecord({"do": (orders or {}).get(client, "add"), "mark": str(mark)})
        sent.append(Message(RecordDict({"arrays": shared, "config": config}), client, kind))
    return list(engine.send_and_receive(sent))


def sums(replies: list[Message]) -> list[Any]:
    """Return the clients' sums in the order of the replies, or why there is none."""
    return [
        reply.content["arrays"]["x"].numpy().tolist()
        if reply.has_content() and reply.content["arrays"]
        else reply.error.reason
        if reply.has_error()
        else None
        for reply in replies
    ]


def restored_by(engine: RayEngine) -> dict[int, int]:
    """Return the round of the state that each client was set back to."""
    restored = engine.take_restored()
    assert all(lost.reason for lost in restored.values())
    return {client: lost.server_round for client, lost in restored.items()}


def workers(replies: list[Message]) -> list[int]:
    return [reply.content["metrics"]["worker"] for reply in replies]


def kill(engine: RayEngine, worker: int) -> None:
    """End a worker's process from outside, and wait until it is gone."""
    actor = engine.actors[worker]
    ray.kill(actor)
    wait_for_the_end_of(actor)


def wait_for_the_end_of(actor: Any) -> None:
    try:
        while True:
            ray.get(actor.placed.remote())
    except ray.exceptions.RayActorError:
        pass


@pytest.fixture(scope="module")
def one_engine(ray_session: None) -> Iterator[RayEngine]:
    with RayEngine(obedient_app, CLIENTS, 2) as engine:
        yield engine


@pytest.fixture
def engine(one_engine: RayEngine, tmp_path: Path) -> RayEngine:
    """Return the engine of all tests, its clients in their initial state."""
    ask(one_engine, 1, dict.fromkeys(range(CLIENTS), "reset"))
    one_engine.save_clients(tmp_path / "nothing", range(CLIENTS), 0)
    one_engine.take_restored()
    return one_engine


@pytest.fixture
def local() -> Iterator[LocalEngine]:
    with LocalEngine(obedient_app, CLIENTS, 1) as engine:
        yield engine


def test_replies_are_those_of_the_local_engine_byte_for_byte(engine: RayEngine, local: LocalEngine) -> None:
    for server_round in (1, 2):
        for kind in (MessageType.TRAIN, MessageType.EVALUATE):
            ours, theirs = (ask(one, server_round, {4: "raise"}, kind) for one in (engine, local))
            assert sums(ours) == sums(theirs)
            assert [reply.metadata.src_node_id for reply in ours] == list(range(CLIENTS))
            assert [reply.content["arrays"] for reply in ours if reply.has_content()] == [
                reply.content["arrays"] for reply in theirs if reply.has_content()
            ]
    pids = workers(ask(engine, 1, kind=MessageType.EVALUATE))
    assert pids == [pids[0], pids[1]] * 3
    assert pids[0] != pids[1]


def test_replies_come_in_the_order_of_the_messages(engine: RayEngine) -> None:
    order = [5, 0, 3, 3, 1]
    sent = [Message(RecordDict(), client, MessageType.EVALUATE) for client in order]
    assert [reply.metadata.src_node_id for reply in engine.send_and_receive(sent)] == order
    assert list(engine.send_and_receive([])) == []


def test_a_client_that_returns_nothing_is_an_error_and_keeps_its_state(engine: RayEngine) -> None:
    before = sums(ask(engine, 1))
    replies = sums(ask(engine, 2, {3: "nothing"}))
    assert replies[3] == "the client returned a NoneType; it must return a Message"
    assert sums(ask(engine, 2, kind=MessageType.EVALUATE))[3] == before[3]


def test_whatever_a_client_raises_is_a_fault_of_that_client(engine: RayEngine) -> None:
    names = {1: "SystemExit", 2: "KeyboardInterrupt", 4: "GeneratorExit"}
    before, after = sums(ask(engine, 1)), sums(ask(engine, 1, names))
    assert {client: after[client].partition(" (")[0] for client in names} == names
    assert after[0] == [2 * value for value in before[0]]
    assert restored_by(engine) == {}  # no worker has died


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_ends_the_building_of_the_clients_is_the_error_of_the_run(kind: type[BaseException]) -> None:
    def broken() -> ClientApp:
        raise kind

    with pytest.raises(
        ConfigError, match=rf"^a worker of Ray on \S+ cannot build its clients: {kind.__name__} \(test_ray"
    ):
        Actor(None).start(broken, CLIENTS, 0, {}, None)


def test_a_worker_killed_between_rounds_loses_nothing_that_was_saved(
    engine: RayEngine, local: LocalEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for one in (engine, local):
        ask(one, 1)
    engine.save_clients(tmp_path, range(CLIENTS), 1)
    kill(engine, 1)
    with caplog.at_level(logging.WARNING, "fedsim.federation.engines.workers"):
        assert sums(ask(engine, 2)) == sums(ask(local, 2))
    assert restored_by(engine) == {1: 1, 3: 1, 5: 1}
    assert "worker 1 was replaced" in caplog.text
    assert "clients 1, 3, 5 are back at their state after round 1" in caplog.text
    assert sums(ask(engine, 3)) == sums(ask(local, 3))


def test_a_worker_that_dies_in_a_round_loses_nothing_of_that_round(
    engine: RayEngine, local: LocalEngine, tmp_path: Path
) -> None:
    for one in (engine, local):
        ask(one, 1)
    engine.save_clients(tmp_path, range(CLIENTS), 1)
    expected = sums(ask(local, 2))
    assert sums(ask(engine, 2, {4: "die once"}, mark=tmp_path / "mark")) == expected
    # The clients before it were answered when they died: they have answered again, for their state.
    assert sums(ask(engine, 2, kind=MessageType.EVALUATE)) == expected
    restored = restored_by(engine)
    assert set(restored) <= {0, 2, 4}
    assert set(restored.values()) <= {1}


def test_a_client_that_always_kills_its_worker_is_left_out_alone(
    engine: RayEngine, local: LocalEngine, tmp_path: Path
) -> None:
    for one in (engine, local):
        ask(one, 1)
    engine.save_clients(tmp_path, range(CLIENTS), 1)
    ours, theirs = sums(ask(engine, 2, {2: "die"}, mark=tmp_path / "mark")), sums(ask(local, 2, {2: "raise"}))
    assert ours == [*theirs[:2], "its worker crashed twice while running it", *theirs[3:]]
    engine.save_clients(tmp_path, range(CLIENTS), 2)
    assert sums(ask(engine, 3)) == sums(ask(local, 3))


def test_a_worker_that_dies_before_a_checkpoint_leaves_whole_files(
    engine: RayEngine, local: LocalEngine, tmp_path: Path
) -> None:
    for one, name in ((engine, "ours"), (local, "theirs")):
        ask(one, 1)
        if one is engine:
            kill(engine, 0)
        one.save_clients(tmp_path / name, range(CLIENTS), 1)
    for client in range(CLIENTS):
        ours, theirs = (StateFiles(tmp_path / name).path(client, 1).read_bytes() for name in ("ours", "theirs"))
        assert ours == theirs
    assert restored_by(engine) == {}


def test_clients_that_trained_more_than_once_since_their_checkpoint_are_set_back_to_it(
    engine: RayEngine, tmp_path: Path
) -> None:
    first = sums(ask(engine, 1))
    engine.save_clients(tmp_path, [0, 1], 1)
    for server_round in (2, 3):
        ask(engine, server_round)
    kill(engine, 0)
    after = sums(ask(engine, 3, kind=MessageType.EVALUATE))
    assert after[0] == first[0]
    assert after[2] is None
    assert restored_by(engine) == {0: 1, 2: 0, 4: 0}


def test_a_state_that_was_loaded_is_what_a_dead_worker_is_set_back_to(engine: RayEngine, tmp_path: Path) -> None:
    first = sums(ask(engine, 1))
    engine.save_clients(tmp_path, range(CLIENTS), 7)
    ask(engine, 2)
    engine.load_clients(tmp_path, dict.fromkeys(range(CLIENTS), 7))
    kill(engine, 1)
    assert sums(ask(engine, 3, kind=MessageType.EVALUATE)) == first
    assert restored_by(engine) == {1: 7, 3: 7, 5: 7}


def test_without_room_for_a_new_worker_the_others_take_over(
    local: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RayEngine(obedient_app, CLIENTS, 2) as engine:
        assert sums(ask(engine, 1)) == sums(ask(local, 1))
        engine.save_clients(tmp_path, range(CLIENTS), 1)
        kill(engine, 0)
        monkeypatch.setattr(workers_module, "room", lambda needs, names=None: 1)
        replies = ask(engine, 2)
        assert sums(replies) == sums(ask(local, 2))
        assert len(set(workers(replies))) == 1
        assert restored_by(engine) == {0: 1, 2: 1, 4: 1}
        kill(engine, 0)
        monkeypatch.setattr(workers_module, "room", lambda needs, names=None: 0)
        with pytest.raises(RunError, match="no Ray worker is left"):
            ask(engine, 3)


def test_a_client_that_exceeds_its_deadline_is_left_out_alone(local: LocalEngine, tmp_path: Path) -> None:
    with RayEngine(obedient_app, CLIENTS, 2, deadline=3.0) as engine:
        for one in (engine, local):
            ask(one, 1)
        engine.save_clients(tmp_path, range(CLIENTS), 1)
        ours, theirs = sums(ask(engine, 2, {2: "sleep"})), sums(ask(local, 2, {2: "raise"}))
        assert ours == [*theirs[:2], "it timed out after 3 s", *theirs[3:]]
        # Client 0 had answered before: it answers again, so that only who had no answer yet is set back.
        assert restored_by(engine) == {2: 1, 4: 1}
        assert sums(ask(engine, 3)) == sums(ask(local, 3))


def test_an_engine_ends_its_workers_while_their_clients_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workers, "end", ray_workers.end)
    engine = RayEngine(obedient_app, CLIENTS, 2)
    sent = [
        Message(RecordDict({"arrays": record_of(torch.zeros(3)), "config": ConfigRecord({"do": do})}), client, "train")
        for client, do in enumerate(["add", "sleep"])
    ]
    assert next(iter(engine.send_and_receive(sent))).has_content()
    actors = engine.actors
    engine.close()
    for actor in actors:
        wait_for_the_end_of(actor)


def test_an_app_that_cannot_be_built_is_the_error_of_the_run() -> None:
    def broken() -> ClientApp:
        raise ConfigError("the data are not on this node")

    with (
        RayEngine(broken, CLIENTS, 1) as engine,
        pytest.raises(ConfigError, match=r"^the worker on [\d.]+: the data are not on this node$"),
    ):
        ask(engine, 1)


def test_ray_is_stopped_if_an_engine_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[object] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(starting, "start", lambda workers: None)
    monkeypatch.setattr(starting, "stop", stopped.append)
    threads = torch.get_num_threads()
    with pytest.raises(TypeError, match="cannot pickle"):
        RayEngine(obedient_app, CLIENTS, 1, shared=(each for each in "no data"))
    assert (stopped, torch.get_num_threads()) == ([None], threads)


ALONE = '''
import functools, os, ray, signal, subprocess, sys
from tests.federation.listening import listening
from fedsim.federation.engines import processes, ray as engines
from flwr.app import Message, RecordDict, MetricRecord
from flwr.clientapp import ClientApp

def make():
    app = ClientApp()
    @app.train()
    def train(message, context):
        gpus = float(os.environ.get("CUDA_VISIBLE_DEVICES") or -1)
        return Message(RecordDict({"metrics": MetricRecord({"gpus": gpus, "worker": os.getpid()})}), reply_to=message)
    return app

def ask(engine):
    replies = engine.send_and_receive([Message(RecordDict(), client, "train") for client in range(4)])
    return [reply.content["metrics"] for reply in replies]

STRANGER = """
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=f"127.0.0.1:{sys.argv[1]}").internal_kv_keys(b"", None)
except Exception as error:
    print(type(error).__name__)
"""

before = dict(os.environ)
ray.init = functools.partial(ray.init, num_gpus=1)
with engines.RayEngine(make, 4, 2, gpus_per_worker=0.5) as engine:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    scratch = engine.scratch.path
    assert list(scratch.glob("*/session_*/sockets")) and scratch.stat().st_mode & 0o077 == 0
    answers = ask(engine)
    assert [answer["gpus"] for answer in answers] == [0.0] * 4 and len({answer["worker"] for answer in answers}) == 2
    roles = {os.getpid(): "driver"} | {answer["worker"]: "worker" for answer in answers}
    listeners = [(roles.get(pid, name), host, port) for pid, name, host, port in listening(os.getpid())]
    print(sorted({listener[:2] for listener in listeners}))
    for role, _, port in listeners:
        if role == "gcs_server":
            subprocess.run([sys.executable, "-c", STRANGER, str(port)], stderr=subprocess.DEVNULL)
    try:
        engines.RayEngine(make, 4, 2, gpus_per_worker=0.75)
    except Exception as error:
        print(error)
assert not scratch.exists()
assert {name: os.environ[name] for name in before} == before
assert "PYTHONPATH" in before or "PYTHONPATH" not in os.environ
assert processes.Node.start_monitor.__name__ == "start_monitor"
'''


@pytest.mark.ray(alone=True)
@pytest.mark.slow
def test_ray_alone_is_closed_to_others_and_cleans_up_and_workers_share_a_gpu(tmp_path: Path) -> None:
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        str([(role, "127.0.0.1") for role in ("driver", "gcs_server", "raylet", "worker")]),
        "AuthenticationError",
        "the engine's workers need 1.5 GPUs, but Ray has 1; "
        "use fewer engine.workers or a smaller engine.gpus_per_worker",
    ]
