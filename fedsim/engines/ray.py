"""Clients in Ray actors, on this machine or a cluster. The only module that imports ray."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedsim.engines.clients import Clients
from fedsim.engines.grid import RUN, Engine
from fedsim.errors import ConfigError, RunError

# Both are read when ray is imported. Its workers give way to every other process unless this is set.
os.environ.setdefault("RAY_worker_niceness", "0")
# A worker without a share of a GPU may still use it, which is also what Ray will do by default.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import ray
from ray.exceptions import RayActorError

Item = TypeVar("Item")


def _python_path() -> str:
    """Return where this process imports from, so that workers find a model or data set of the user's own."""
    return os.pathsep.join(path for path in sys.path if path)


def _start(address: str | None, workers: int) -> None:
    """Connect to a cluster, or start Ray here."""
    here: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path(), **_places_of_data()}},
            **here,
        )
    except (ValueError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"engine.address = {address!r}: Ray cannot be reached ({reason}); leave it out to start Ray here"
        ) from error


def _places_of_data() -> dict[str, str]:
    return {name: os.environ[name] for name in ("FEDSIM_DATA", "XDG_CACHE_HOME") if name in os.environ}


class _Worker:
    """The clients of one actor."""

    def __init__(self, make_app: Callable[[], ClientApp], count: int) -> None:
        torch.set_num_threads(1)
        self._clients = Clients(make_app(), count, RUN)

    def handle(self, messages: list[Message]) -> list[Message]:
        return [self._clients.answer(message) for message in messages]

    def save(self, folder: Path, clients: list[int], server_round: int) -> None:
        self._clients.save(folder, clients, server_round)

    def load(self, folder: Path, rounds: dict[int, int]) -> None:
        self._clients.load(folder, rounds)


class RayEngine(Engine):
    """Runs the clients in actors; a client stays with its actor, so its data and its personal layers do not travel.

    Parameters
    ----------
    address
        Of an existing cluster (``auto`` finds it); without one, Ray is started on this machine. Checkpoints need a
        file system that all of its nodes share.
    gpus_per_worker
        May be a fraction.

    Raises
    ------
    ConfigError
        If Ray does not have the processors or GPUs that the workers need.
    """

    def __init__(
        self,
        make_app: Callable[[], ClientApp],
        clients: int,
        workers: int = 0,
        address: str | None = None,
        gpus_per_worker: float = 0.0,
    ) -> None:
        super().__init__(clients, workers)
        self._started = not ray.is_initialized()
        if self._started:
            _start(address, self.workers)
        if address and not workers:
            self.workers = int(ray.cluster_resources().get("CPU", 1))
        self._actors: list[Any] = []
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        count = min(self.workers, clients)
        self._check_resources({"CPU": count, "GPU": count * gpus_per_worker})
        actor = ray.remote(num_cpus=1, num_gpus=gpus_per_worker)(_Worker)
        self._actors = [actor.remote(make_app, clients) for _ in range(count)]

    def handle(self, messages: list[Message]) -> list[Message]:
        """Send each actor the messages of its clients as one list."""
        batches = self._by_actor(messages, lambda message: message.metadata.dst_node_id)
        replies = self._call("handle", {worker: (batch,) for worker, batch in batches.items()})
        return [reply for batch in replies for reply in batch]

    def save_clients(self, folder: Path, clients: Iterable[int], server_round: int) -> None:
        """Let each actor write the state of its clients."""
        batches = self._by_actor(clients, lambda client: client)
        self._call("save", {worker: (folder.resolve(), batch, server_round) for worker, batch in batches.items()})

    def load_clients(self, folder: Path, rounds: Mapping[int, int]) -> None:
        """Let each actor read the state of its clients."""
        batches = self._by_actor(rounds.items(), lambda item: item[0])
        self._call("load", {worker: (folder.resolve(), dict(batch)) for worker, batch in batches.items()})

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        for actor in self._actors:
            ray.kill(actor)
        if self._started:
            ray.shutdown()
        torch.set_num_threads(self._threads_before)

    def _check_resources(self, needed: Mapping[str, float]) -> None:
        """Refuse what Ray would wait for without end."""
        there = ray.cluster_resources()
        for resource, amount in needed.items():
            if amount > there.get(resource, 0):
                self.close()
                raise ConfigError(
                    f"the engine's workers need {amount:g} {resource}s and Ray has {there.get(resource, 0):g}; use "
                    "fewer engine.workers or a smaller engine.gpus_per_worker"
                )

    def _by_actor(self, items: Iterable[Item], client_of: Callable[[Item], int]) -> dict[int, list[Item]]:
        batches: dict[int, list[Item]] = {}
        for item in items:
            batches.setdefault(client_of(item) % len(self._actors), []).append(item)
        return batches

    def _call(self, method: str, arguments: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        """Call a method of several actors at once and wait for all of them."""
        try:
            return ray.get([getattr(self._actors[worker], method).remote(*args) for worker, args in arguments.items()])
        except RayActorError as error:
            raise RunError(
                f"a Ray worker died ({str(error).strip().splitlines()[-1].strip()}); run the same command again to "
                "continue from the last checkpoint, with fewer engine.workers if memory ran out"
            ) from error
