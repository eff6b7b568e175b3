"""Workers of the ray engine: actors that start, die and are replaced, or join, and the clients that each one has."""

import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import ray
from flwr.clientapp import ClientApp
from ray.exceptions import RayTaskError

from fedsim.errors import ConfigError, RunError
from fedsim.federation.engines.actor import Actor
from fedsim.federation.engines.failing import DEATHS, raise_cause, reason_of
from fedsim.federation.engines.grid import Restored
from fedsim.federation.engines.homes import Homes
from fedsim.federation.engines.journal import Journal, describe
from fedsim.federation.engines.queues import Item, Queue
from fedsim.federation.engines.reaching import Needs, room_for
from fedsim.federation.engines.state_files import StateFiles
from fedsim.federation.engines.states import Encoded
from fedsim.results.environment import differing, versions

PLACEMENT_SECONDS, LOOK_SECONDS = 300.0, 3.0  # on a machine that is busy, a process may start slowly
AGAIN_SECONDS = 60.0  # for the place of one that the run can do without: other runs may have what is left of a cluster
NOTICE_SECONDS = 30.0  # without a place
STARTS = 2  # of a worker that dies before it has started
END_SECONDS = 2.0
SAVED_AT_ONCE = 16  # states per worker that are in its memory a second time
EMPTY: Mapping[int, Encoded] = MappingProxyType({})
NODE_ID = "ray.io/node-id"  # Ray's label for it
App = tuple[Callable[..., ClientApp], int, int, Mapping[str, str], Any]  # what `Actor.start` takes
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Worker(Queue):
    """An actor as the engine sees it.

    Attributes
    ----------
    started, placed
        Futures: the actor is ready, and Ray has placed it, on the machine that it names.
    since
        When the actor was asked for, or when its first running call began, in seconds of `time.monotonic`.
    look
        When to check next whether Ray can place it, in the same seconds; None once it has a place.
    node
        Ray's name for the machine that it is on, once that is known.
    joined
        Whether it is new, on a machine that has joined: the run does without it if it cannot begin.
    states
        States of its clients that it has not got yet: it gets each with the client's next message.
    """

    number: int = 0
    actor: Any = None
    started: Any = None
    placed: Any = None
    ready: bool = False
    starts: int = 0
    since: float = 0.0
    look: float | None = 0.0
    node: str = ""
    joined: bool = False
    states: dict[int, Encoded] = field(default_factory=dict)

    def take_states(self, clients: Iterable[int], *, is_here: bool) -> dict[int, Encoded]:
        """Return the states that go with a call to these clients; a worker on this machine reads files itself."""
        found = {client: self.states.pop(client) for client in clients if client in self.states}
        if is_here:
            return found
        return {client: np.frombuffer(content_of(state), np.uint8) for client, state in found.items()}

    def take_held(self) -> dict[int, Encoded]:
        """Return the states that are still its clients', as an actor that has not started has got none of them."""
        held, self.states = self.states, {}
        return {} if self.ready else held


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
        self._restored: dict[int, Restored] = {}
        self._nodes = set(nodes())
        self._refused: set[str] = set()
        self._told = False
        self._actor = self._kind()
        self._versions = versions()
        self._numbers = itertools.count()
        self._alive = [Worker(number=next(self._numbers)) for _ in range(count)]
        self._homes = Homes(self._alive, app[1])
        for worker in self._alive:
            self._start(worker)

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._alive))

    def home(self, client: int) -> Worker:
        """Return the worker that a client is on."""
        return self._homes.of(client)

    def meet(self, worker: Worker) -> list[Item] | None:
        """Note where a worker is that has started, and check that numbers are computed there as they are here.

        Returns
        -------
        items
            None if all is well. A machine with other versions gets no workers any more; items as `replace` returns
            them.

        Raises
        ------
        ConfigError
            If the versions are others where the run begins.
        """
        is_first = not (worker.node or worker.joined)
        worker.node, address, theirs = ray.get(worker.placed)
        if not (others := differing(theirs, self._versions)):
            return None
        listed = ", ".join(f"{name} {there}, and this one {here}" for name, (there, here) in others.items())
        reason = f"the machine {address} of the Ray cluster has {listed}"
        if is_first:
            raise ConfigError(f"{reason}; install the same versions on all, as numbers depend on them")
        self._refused.add(worker.node)
        self._actor, worker.starts = self._kind(), 0
        return self.remove(worker, reason) if worker.joined else self.replace(worker, reason)

    def grow(self, at_most: int) -> None:
        """Start workers on machines that have joined the cluster, each of which takes its share of the clients."""
        if len(self._alive) >= at_most:
            return
        now = self._usable()
        joined, self._nodes = now - self._nodes, now
        free = min(room(self._needs, joined), room(self._needs, now) - len(self._alive), at_most - len(self._alive))
        if free <= 0:
            return
        logger.info("workers started on machines that have joined the Ray cluster: %d", free)
        before = {client: self.home(client) for client in self._journal.known()}
        for _ in range(free):
            worker = Worker(number=next(self._numbers), joined=True)
            self._alive.append(worker)
            self._homes.join(worker)
            self._start(worker)
        self._move(before)

    def _move(self, before: Mapping[int, Worker]) -> None:
        """Bring the states of clients to the workers that they have now."""
        moved: dict[Worker, list[int]] = {}
        for client, worker in before.items():
            if self.home(client) is not worker:
                moved.setdefault(worker, []).append(client)
        for worker, clients in moved.items():
            states = {client: worker.states.pop(client) for client in clients if client in worker.states}
            for client in clients:
                if client not in states and (file := self._journal.unchanged_file(client)):
                    states[client] = file
            try:
                for start in range(0, len(clients) if worker.ready else 0, SAVED_AT_ONCE):
                    batch = clients[start : start + SAVED_AT_ONCE]
                    wanted = [client for client in batch if client not in states]
                    states |= ray.get(worker.actor.hand_over.remote(batch, wanted))
            except DEATHS as error:
                lost = [client for client in clients[start:] if client not in states]
                self._set_back(lost, f"worker {worker.number} died ({reason_of(error)})", reason_of(error))
            except RayTaskError as error:
                raise_cause(error)
            for client, state in states.items():
                self.home(client).states[client] = state

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
        if worker.starts >= STARTS and not worker.joined:
            raise RunError(f"Ray's workers die when they start ({reason}); use fewer engine.workers")
        if worker.starts >= STARTS or room(self._needs, self._usable()) < len(self._alive):
            return self.remove(worker, reason)
        ray.kill(worker.actor)
        given_up, held = self._put_back(worker, reason), worker.take_held()
        self._start(worker)
        self._set_back(self._clients_of(worker), f"worker {worker.number} was replaced ({reason})", reason, held)
        return given_up

    def look_for(self, worker: Worker) -> list[Item]:
        """Remove a worker for which Ray has no place; Ray may need a while to notice that a node is gone.

        Returns
        -------
        items
            As `replace` returns them.
        """
        waited = time.monotonic() - worker.since
        limit = AGAIN_SECONDS if worker.node or worker.joined else PLACEMENT_SECONDS
        if ray.wait([worker.placed], timeout=0)[0]:
            worker.look = None  # it builds its app, for which there is no limit
        elif waited > limit or room(self._needs, self._usable()) < len(self._alive):
            return self.remove(worker, f"Ray found no place for it in {waited:.0f} s")
        else:
            worker.look = time.monotonic() + LOOK_SECONDS
            if waited > NOTICE_SECONDS and not self._told:
                self._told = True
                count = sum(not ray.wait([each.placed], timeout=0)[0] for each in self._alive)
                what = f"{count} of {len(self._alive)} workers have no place, and wait {limit - waited:.0f} s longer"
                logger.warning("%s: others use what Ray has, or a machine is busy", what)
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

    def remove(self, worker: Worker, reason: str) -> list[Item]:
        """Share out the clients of a worker among the others.

        Returns
        -------
        items
            As `replace` returns them.

        Raises
        ------
        RunError
            If none is left.
        """
        ray.kill(worker.actor)
        self._alive.remove(worker)
        if not self._alive:
            raise RunError(f"no Ray worker is left ({reason}); run the same command again when Ray has the resources")
        given_up, held = self._put_back(worker, reason), worker.take_held()
        clients = self._clients_of(worker)
        self._homes.leave(worker, self._alive)
        for other in self._alive:
            other.add(item for item in worker.waiting if self.home(item.client) is other)
        what = f"worker {worker.number} is gone ({reason}), and the others take over"
        self._set_back(clients, what, reason, held)
        return given_up

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

    def _kind(self) -> Any:
        """Return what makes actors, on none of the machines that have other versions."""
        # Ray takes a space after a comma for a part of the name.
        selector = {NODE_ID: f"!in({','.join(sorted(self._refused))})"} if self._refused else {}
        return ray.remote(num_cpus=self._needs["CPU"], num_gpus=self._needs["GPU"], label_selector=selector)(Actor)

    def _usable(self) -> set[str]:
        return nodes().keys() - self._refused

    def _start(self, worker: Worker) -> None:
        worker.actor = self._actor.remote(self._scratch)
        worker.placed, worker.started = worker.actor.placed.remote(), worker.actor.start.remote(*self._app)
        worker.ready, worker.starts, worker.since = False, worker.starts + 1, time.monotonic()
        worker.look = worker.since + LOOK_SECONDS

    def _put_back(self, worker: Worker, reason: str) -> list[Item]:
        """Queue again what a worker ran; no client is to blame for a machine that has left."""
        return self.give_up(worker.put_back(blame=not worker.node or worker.node in nodes()), reason)

    def _clients_of(self, worker: Worker) -> list[int]:
        return [client for client in self._journal.known() if self.home(client) is worker]

    def _set_back(self, clients: list[int], what: str, reason: str, held: Mapping[int, Encoded] = EMPTY) -> None:
        """Bring clients to their last checkpoint, except those of held states, on the workers that they have now."""
        for client, state in held.items():
            self.home(client).states[client] = state
        files, restored = self._journal.set_back(client for client in clients if client not in held)
        for folder, rounds in files.items():
            for client, server_round in rounds.items():
                self.home(client).states[client] = StateFiles(folder).path(client, server_round)
        self._note(restored, reason)
        logger.warning("%s; %s", what, describe(restored) or "its clients lost nothing")

    def _note(self, restored: dict[int, int], reason: str) -> None:
        self._restored |= {client: Restored(server_round, reason) for client, server_round in restored.items()}


def content_of(state: Encoded) -> bytes:
    """Return a state as it is saved."""
    return state.read_bytes() if isinstance(state, Path) else bytes(state)


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


def nodes() -> dict[str, Mapping[str, float]]:
    """Return what the machines that are in the cluster now have, by Ray's names for them."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def room(needs: Needs, names: Collection[str] | None = None) -> int:
    """Return how many workers there is room for on some machines, or on all."""
    return room_for(needs, (has for name, has in nodes().items() if names is None or name in names))
