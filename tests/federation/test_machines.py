"""The ray engine on several machines, which leave and join."""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.node import Node

from fedsim.config import Config, EngineConfig
from fedsim.errors import ConfigError
from fedsim.federation.engines import check_reachable, reaching, room_on_cluster
from fedsim.federation.engines import workers as workers_module
from fedsim.federation.engines.local import LocalEngine
from fedsim.federation.engines.processes import few_processes
from fedsim.federation.engines.ray import RayEngine
from fedsim.federation.engines.workers import Workers
from fedsim.results.folder import RunFolder
from tests import ray_workers
from tests.conftest import run_files
from tests.federation.machines import Machines
from tests.federation.test_ray import CLIENTS, ask, obedient_app, restored_by, sums, workers

# Workers cannot import the tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.ray

HEAVY = {
    "pandas",
    "matplotlib",
    "altair",
    "scipy.stats",
}  # which no client needs; Ray itself imports pyarrow and pydantic


@pytest.fixture(scope="module")
def machines(ray_session: None) -> Iterator[Machines]:
    """Return the cluster; only its machines that join have a GPU, so that workers which need one are there."""
    with few_processes():
        yield Machines()


def states(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_machines_leave_and_join_without_a_change_of_any_number(machines: Machines, tmp_path: Path) -> None:
    first, second = machines.join(), machines.join()
    with (
        RayEngine(obedient_app, CLIENTS, 0, "auto", gpus_per_worker=1.0) as engine,
        LocalEngine(obedient_app, CLIENTS, 1) as local,
    ):

        def play(server_round: int, *, saves: bool = True, waits: int | None = None) -> list[int]:
            """Let all clients train in both engines; return the process in which each has done so."""
            orders = {} if waits is None else {waits: "wait once"}
            ours, theirs = ask(engine, server_round, orders, mark=tmp_path / "waits"), ask(local, server_round)
            assert sums(ours) == sums(theirs)
            for one, name in ((engine, "ours"), (local, "theirs")) if saves else ():
                one.save_clients(tmp_path / name, range(CLIENTS), server_round)
            return workers(ours)

        before = play(1)
        assert {ray.get(actor.placed.remote())[0] for actor in engine.actors} == {first.node_id, second.node_id}
        gone = {ray.get(actor.placed.remote())[0]: place for place, actor in enumerate(engine.actors)}[first.node_id]
        machines.leave(first)
        after = play(2)
        assert after == [before[1 - gone]] * CLIENTS
        assert restored_by(engine) == dict.fromkeys(range(gone, CLIENTS, 2), 1)
        play(3, saves=False)
        third = machines.join()
        again = play(4)
        assert restored_by(engine) == {}
        # It takes its share of the clients, with what they have learned since the checkpoint; the others stay.
        assert sorted(again.count(worker) for worker in set(again)) == [CLIENTS // 2] * 2
        assert sum(one == other for one, other in zip(after, again, strict=True)) == CLIENTS // 2
        engine.load_clients(tmp_path / "ours", dict.fromkeys(range(CLIENTS), 2))
        local.load_clients(tmp_path / "theirs", dict.fromkeys(range(CLIENTS), 2))
        fifth = play(5)
        moved = [client for client in range(CLIENTS) if again[client] != after[client]]
        with ThreadPoolExecutor(1) as pool:
            left = pool.submit(leave_when_there_is, tmp_path / "waits", machines, third)
            assert play(6, waits=moved[1]) == [after[0]] * CLIENTS
            left.result()
        assert fifth == again
        assert restored_by(engine).items() <= dict.fromkeys(moved, 5).items()  # and no others
        assert states(tmp_path / "ours") == states(tmp_path / "theirs")
    machines.leave(second)


def leave_when_there_is(file: Path, machines: Machines, node: Node) -> None:
    """Let a machine leave while a client of it trains."""
    while not file.exists():
        time.sleep(0.05)
    machines.leave(node)


def test_a_whole_run_needs_no_data_and_nothing_heavy_on_the_other_machines(
    machines: Machines,
    tiny: Callable[..., Config],
    play: Callable[..., RunFolder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, rng = tmp_path / "data", np.random.default_rng(0)
    here.mkdir()
    parts: dict[str, Any] = {}
    for part in ("train", "test"):
        parts |= {f"{part}_inputs": rng.random((80, 6), np.float32), f"{part}_targets": rng.integers(0, 3, 80)}
    np.savez(here / "vectors.npz", **parts)
    monkeypatch.setenv("FEDSIM_DATA", str(here))
    config = tiny(
        data={"name": "arrays", "path": "vectors.npz"},
        strategy={"name": "layer_set", "shared": "body"},
        barriers__every=0,
        partition__alpha=5.0,
    )
    elsewhere = machines.join(FEDSIM_DATA="/nowhere")
    on_ray = {"name": "ray", "address": "auto", "gpus_per_worker": 1.0}
    imported: set[str] = set()

    def end(self: Workers) -> None:
        for worker in self:
            imported.update(ray.get(worker.actor.__ray_call__.remote(lambda _: set(sys.modules))))
        ray_workers.end(self)

    monkeypatch.setattr(Workers, "end", end)
    found = play(config.model_copy(update={"engine": EngineConfig(**on_ray)}), "ray")
    assert "fedsim.federation.client.app" in imported
    assert not imported & HEAVY
    assert run_files(found) == run_files(play(config, "local"))
    machines.leave(elsewhere)


def test_a_machine_with_other_versions_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = workers_module.versions()
    other = {**ours, "python": "3.9.1", "packages": {**ours["packages"], "torch": "1.13.0"}}
    monkeypatch.setattr(workers_module, "versions", lambda: other)
    line = (
        r"^the machine [\d.]+ of the Ray cluster has Python 3\.\d+, and this one 3\.9, "
        r"torch 2\S+, and this one 1\.13\.0; "
        r"install the same versions on all, as numbers depend on them$"
    )
    with RayEngine(obedient_app, CLIENTS, 1) as engine, pytest.raises(ConfigError, match=line):
        ask(engine, 1)


def test_a_cluster_of_other_machines_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    address = ray.get_runtime_context().gcs_address
    settings = EngineConfig(name="ray", address=address)
    check_reachable(settings)
    monkeypatch.setattr(reaching, "find_node_ids", lambda: {"0" * 56})  # another cluster's
    with pytest.raises(
        ConfigError, match=r"^engine\.address = .*\(this machine is not part of that cluster; run `ray start"
    ):
        check_reachable(settings)


def test_the_runs_of_a_sweep_share_what_the_cluster_has() -> None:
    address = ray.get_runtime_context().gcs_address
    assert room_on_cluster(EngineConfig(name="ray", address=address)) == ray.cluster_resources()["CPU"]
    assert room_on_cluster(EngineConfig(name="ray", address=address, gpus_per_worker=0.5)) == 0
    with pytest.raises(ConfigError, match=r"does not tell how large the cluster is; set engine\.workers"):
        room_on_cluster(EngineConfig(name="ray", address="ray://127.0.0.1:1"))
