"""Workers of the ray engine: actors that start, die and are replaced, and the clients that each one has."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from flwr.clientapp import ClientApp

from fedsim.errors import ConfigError, RunError
from fedsim.federation.engines.actor import Actor
from fedsim.federation.engines.grid import Restored
from fedsim.federation.engines.journal import Journal, describe
from fedsim.federation.engines.queues import Call, Item, Queue

PLACEMENT_SECONDS, LOOK_SECONDS = 60.0, 3.0
STARTS = 2  # of a worker that dies before it has begun
END_SECONDS = 2.0
App = tuple[Callable[..., ClientApp], int, int, Any]  # what `Actor.start` takes
Needs = dict[str, float]  # of each worker, by the name of Ray's resource
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Worker(Queue):
    """An actor as the engine sees it.

    Attributes
    ----------
    started, placed
        Futures: the actor is ready, and Ray has found a place for it. The second is None once that is known.
    since
        When the actor was asked for, or when its first running call began, in seconds of `time.monotonic`.
    look
        When to check next whether Ray can place it, in the same seconds.
    """

    number: int = 0
    actor: Any = None
    started: Any = None
    placed: Any = None
    ready: bool = False
    starts: int = 0
    since: float = 0.0
    look: float = 0.0


class Workers:
    """The workers of an engine; a client stays with its worker as long as that one lives.

    Parameters
    ----------
    scratch
        Folder of Ray's own files, if Ray was started here.
    journal
        Journal from which the clients of a dead worker are restored.
    """

    def __init__(self, count: int, app: App, needs: Needs, scratch: str | None, journal: Journal) -> None:
        self._app, self._needs, self._scratch, self._journal = app, needs, scratch, journal
        self._actor = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"])(Actor)
        self._restored: dict[int, Restored] = {}
        self._alive = [Worker(number=number) for number in range(count)]
        # The worker of the clients k, k + n, k + 2 n, ... is at place k of n.
        self._homes = list(self._alive)
        for worker in self._alive:
            self._start(worker)

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._alive))

    def home(self, client: int) -> Worker:
        """Return the worker that a client is on."""
        return self._homes[client % len(self._homes)]

    def replace(self, worker: Worker, reason: str) -> list[Item]:
        """Start another actor for a worker that died, or move its clients if there is no place for a new one.

        Returns
        -------
        items
            Messages that are not tried again, because the worker died twice while running them.

        Raises
        ------
        RunError
            If workers die as they start, or none is left.
        """
        if worker.starts >= STARTS:
            raise RunError(f"Ray's workers die when they start ({reason}); use fewer engine.workers")
        if room(self._needs) < len(self._alive):
            return self._remove(worker, reason)
        ray.kill(worker.actor)
        given_up = self.give_up(worker.put_back(), reason)
        self._start(worker)
        self._set_back(
            worker, self._clients_of(worker), f"worker {worker.number} died ({reason}) and was replaced", reason
        )
        return given_up

    def look_for(self, worker: Worker) -> list[Item]:
        """Remove a worker for which Ray has no place; Ray may need a while to notice that a node is gone.

        Returns
        -------
        items
            As `replace` returns them.
        """
        waited = time.monotonic() - worker.since
        if ray.wait([worker.placed], timeout=0)[0]:
            worker.placed = None  # it builds its app, for which there is no limit
        elif waited > PLACEMENT_SECONDS or room(self._needs) < len(self._alive):
            return self._remove(worker, f"Ray found no place for it in {waited:.0f} s")
        else:
            worker.look += LOOK_SECONDS
        return []

    def give_up(self, items: Iterable[Item], reason: str) -> list[Item]:
        """Return the items whose replies are awaited; the clients of the others stay at their last checkpoint."""
        awaited = []
        for item in items:
            if item.number is None:
                self._note(self._journal.give_up(item.client), reason)
            else:
                awaited.append(item)
        return awaited

    def take_restored(self) -> dict[int, Restored]:
        """Return the clients that were set back since the last call."""
        restored, self._restored = self._restored, {}
        return restored

    def end(self) -> None:
        """End the actors without waiting for their clients."""
        idle = [worker.actor.end.remote() for worker in self._alive if worker.ready and not worker.running]
        if idle:
            ray.wait(idle, num_returns=len(idle), timeout=END_SECONDS)
        for worker in self._alive:
            ray.kill(worker.actor)
        self._alive = []

    def _start(self, worker: Worker) -> None:
        worker.actor = self._actor.remote(self._scratch)
        worker.placed, worker.started = worker.actor.placed.remote(), worker.actor.start.remote(*self._app)
        worker.ready, worker.starts, worker.since = False, worker.starts + 1, time.monotonic()
        worker.look = worker.since + LOOK_SECONDS

    def _remove(self, worker: Worker, reason: str) -> list[Item]:
        """Give the clients of a worker to the one that has the fewest."""
        ray.kill(worker.actor)
        self._alive.remove(worker)
        if not self._alive:
            raise RunError(f"no Ray worker is left ({reason}); run the same command again when Ray has the resources")
        given_up = self.give_up(worker.put_back(), reason)
        successor, clients = min(self._alive, key=self._homes.count), self._clients_of(worker)
        self._homes = [successor if home is worker else home for home in self._homes]
        successor.add(worker.waiting)
        what = f"worker {worker.number} is gone ({reason}), worker {successor.number} takes over"
        self._set_back(successor, clients, what, reason)
        return given_up

    def _clients_of(self, worker: Worker) -> list[int]:
        return [client for client in self._journal.known() if self.home(client) is worker]

    def _set_back(self, worker: Worker, clients: list[int], what: str, reason: str) -> None:
        """Bring clients to their last checkpoint, on the worker that they have now."""
        files, restored = self._journal.set_back(clients)
        for folder, rounds in files.items():
            worker.running.append(Call(worker.actor.load.remote(folder, rounds), []))
        self._note(restored, reason)
        logger.warning("%s; %s", what, describe(restored) or "its clients lost nothing")

    def _note(self, restored: dict[int, int], reason: str) -> None:
        self._restored |= {client: Restored(server_round, reason) for client, server_round in restored.items()}


def check_resources(needs: Needs, workers: int) -> None:
    """Refuse what Ray would wait for forever.

    Raises
    ------
    ConfigError
        If the workers need more than Ray has.
    """
    available = ray.cluster_resources()
    for resource, need in needs.items():
        if workers * need > available.get(resource, 0):
            raise ConfigError(
                f"the engine's workers need {workers * need:g} {resource}s, but Ray has "
                f"{available.get(resource, 0):g}; use fewer engine.workers or a smaller engine.gpus_per_worker"
            )


def room(needs: Needs) -> int:
    """Return how many workers there is room for in all of Ray."""
    return sum(
        min(int(node["Resources"].get(name, 0) / need + 1e-6) for name, need in needs.items() if need)
        for node in ray.nodes()
        if node["Alive"]
    )
