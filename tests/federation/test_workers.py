"""The ray engine's workers on machines that join, in a Ray that is only imitated."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MessageType, RecordDict
from ray.exceptions import RayActorError

from fedsim.errors import ConfigError
from fedsim.federation.engines import workers as module
from fedsim.federation.engines.grid import RUN, SERVER_NODE, TaskIdentity
from fedsim.federation.engines.journal import Journal
from fedsim.federation.engines.workers import Worker, Workers
from fedsim.results.environment import versions

CLIENTS = range(120)
OURS = versions()
OTHER = {**OURS, "packages": {**OURS["packages"], "torch": "1.0"}}


class Ray:
    """Machines of two processors; actors are placed on the one with the most room, the last one first."""

    def __init__(self) -> None:
        self.machines: dict[str, dict[str, Any]] = {"A": OURS}
        self.actors: list[Any] = []
        self.handed_over: list[tuple[str, int]] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": name, "Resources": {"CPU": 2.0}, "Alive": True} for name in self.machines]

    def remote(self, label_selector: dict[str, str], **needs: float) -> Any:
        refused = label_selector.get("ray.io/node-id", "")

        def make(scratch: str | None) -> Any:
            used = [actor.node for actor in self.actors]
            free = [name for name in self.machines if name not in refused and used.count(name) < 2]
            name = min(reversed(free), key=used.count)
            actor = SimpleNamespace(node=name, dies=False, start=_call(lambda *_: 1))
            actor.placed = _call(lambda: (name, f"machine {name}", self.machines[name]))
            actor.hand_over = _call(lambda clients, wanted: self._hand_over(actor, clients, wanted))
            self.actors.append(actor)
            return actor

        return lambda kind: SimpleNamespace(remote=make)

    def get(self, call: Any) -> Any:
        return call()

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return [], calls

    def kill(self, actor: Any) -> None:
        self.actors.remove(actor)

    def _hand_over(self, actor: Any, clients: list[int], wanted: Iterable[int]) -> dict[int, np.ndarray]:
        if actor.dies and self.handed_over:
            raise RayActorError
        self.handed_over.append((actor.node, len(clients)))
        return {client: np.array([client], np.uint8) for client in wanted}


def _call(function: Any) -> Any:
    return SimpleNamespace(remote=lambda *values: lambda: function(*values))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    found = Ray()
    monkeypatch.setattr(module, "ray", found)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, SERVER_NODE, 0
    return found


def trained(ray: Ray, count: int = 2) -> tuple[Workers, Journal]:
    """Return the workers of a machine, whose clients have trained twice since they had a checkpoint."""
    journal = Journal()
    workers = Workers(count, (lambda: None, len(CLIENTS), 0, {}, None), {"CPU": 1.0, "GPU": 0.0}, None, journal)
    for worker in workers:
        assert settle(workers, worker) is None
    for _ in range(2):
        messages = [Message(RecordDict(), client, MessageType.TRAIN) for client in CLIENTS]
        journal.begin(messages)
        for message in messages:
            journal.answered(message)
    return workers, journal


def settle(workers: Workers, worker: Worker) -> Any:
    """Let a worker start."""
    removed = workers.meet(worker)
    if removed is None:
        worker.ready, worker.starts, worker.joined = True, 0, False
    return removed


def held(workers: Workers) -> dict[int, list[int]]:
    """Return the states that are on their way to the clients' workers."""
    assert all(workers.home(client) is worker for worker in workers for client in worker.states)
    return {client: np.asarray(state).tolist() for worker in workers for client, state in worker.states.items()}


def test_a_machine_that_joins_with_other_versions_is_left_out_from_then_on(ray: Ray) -> None:
    workers, _ = trained(ray)
    ray.machines["B"] = OTHER
    workers.grow(10)
    assert [settle(workers, worker) for worker in workers if worker.joined] == [[], []]
    first, second = workers
    for _ in range(3):  # a worker that dies has its place on the first machine
        workers.replace(first, "killed")
        assert settle(workers, first) is None
        assert (first.node, second.node) == ("A", "A")
    ray.machines["C"] = OURS
    workers.grow(10)
    assert [settle(workers, worker) for worker in workers if not worker.ready] == [None, None]
    assert [worker.node for worker in workers] == ["A", "A", "C", "C"]
    del ray.machines["C"]
    *_, gone, other = workers
    workers.replace(gone, "its machine left")
    assert list(workers) == [first, second, other]


def test_a_worker_that_was_replaced_on_a_machine_with_other_versions_is_placed_again(ray: Ray) -> None:
    workers, _ = trained(ray)
    first, second = workers
    ray.machines["B"] = OTHER
    workers.replace(first, "killed")
    lost = workers.take_restored()
    assert settle(workers, first) == []
    assert settle(workers, first) is None
    assert first.node == second.node == "A"
    assert lost.keys() == {client for client in CLIENTS if workers.home(client) is first}
    ray.machines = {"B": OTHER}
    with pytest.raises(ConfigError, match=r"^the machine machine B of the Ray cluster has torch 1\.0, and this one "):
        trained(ray, 1)[0]


def test_clients_keep_what_they_have_learned_where_a_worker_that_joins_cannot_start(ray: Ray) -> None:
    workers, _ = trained(ray)
    ray.machines["B"] = OTHER
    workers.grow(10)
    refused, dies = (worker for worker in workers if worker.joined)
    moved = held(workers)
    assert moved == {client: [client] for client in CLIENTS if workers.home(client) in (refused, dies)}
    assert len(moved) == len(CLIENTS) // 2
    assert workers.replace(dies, "killed as it started") == []
    assert held(workers) == moved
    settle(workers, refused)
    settle(workers, dies)
    assert len(list(workers)) == 2
    assert held(workers) == moved
    assert workers.take_restored() == {}


def test_a_wait_for_others_to_leave_room_is_told_once(ray: Ray, caplog: pytest.LogCaptureFixture) -> None:
    workers, _ = trained(ray)
    first, second = workers
    second.since -= 40.0
    for worker in (first, second, second):
        assert workers.look_for(worker) == []
    assert caplog.messages == [
        "2 of 2 workers have no place, and wait 20 s longer: others use what Ray has, or a machine is busy"
    ]


def test_states_are_fetched_in_batches_from_workers_that_have_some(ray: Ray) -> None:
    workers, _ = trained(ray)
    first, second = workers
    first.ready = False
    ray.machines["B"] = OURS
    workers.grow(10)
    assert ray.handed_over == [("A", 16), ("A", 14)]
    assert held(workers) == {client: [client] for client in range(1, 60, 2)}
    assert {workers.home(client) for client in held(workers)}.isdisjoint({first, second})


def test_only_states_that_a_dead_worker_had_not_handed_over_are_lost(ray: Ray) -> None:
    workers, _ = trained(ray, 1)
    ray.actors[0].dies = True
    ray.machines["B"] = OURS
    workers.grow(10)
    moved = [client for client in CLIENTS if workers.home(client) is not next(iter(workers))]
    assert sorted(held(workers)) == moved[:16]
    assert sorted(workers.take_restored()) == moved[16:]


def test_a_run_waits_for_the_place_of_a_worker_only_where_it_needs_it(ray: Ray) -> None:
    ray.machines["B"] = OURS  # whose places another run takes, after a loss
    workers, _ = trained(ray)
    lost, left = workers
    workers.replace(lost, "its machine left")
    lost.since -= 50.0
    assert workers.look_for(lost) == []
    assert list(workers) == [lost, left]
    lost.since -= 20.0
    workers.look_for(lost)
    assert list(workers) == [left]
    left.node, left.since = "", left.since - 200.0  # as if it had never had a place
    workers.look_for(left)
    assert list(workers) == [left]
