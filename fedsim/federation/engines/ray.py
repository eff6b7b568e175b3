"""Clients in Ray actors, on this machine or a cluster. The only module that imports ray."""

import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedsim.errors import ConfigError, RunError
from fedsim.federation.engines.actor import Actor, inherited, variables
from fedsim.federation.engines.clients import CACHE_BYTES
from fedsim.federation.engines.grid import Engine, error_reply
from fedsim.federation.engines.journal import Journal, in_words
from fedsim.federation.engines.packing import Buffer, Packer, unpack
from fedsim.federation.engines.queues import Call, Costs, Item, Queue

# Both are read when ray is imported. Its workers give way to every other process unless this is set.
os.environ.setdefault("RAY_worker_niceness", "0")
# A worker without a share of a GPU may still use it, which is also what Ray will do by default.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
import ray
from ray import exceptions as failures
from ray._private.node import Node

CALLS_AHEAD = 2  # per worker, so that it need not wait for the next
HELD_BYTES = 2**30  # of replies that wait for one before them
PLACEMENT_SECONDS, LOOK_SECONDS = 60.0, 3.0
STARTS = 2  # of a worker that dies before it has begun
CHECKPOINT_DEATHS = 3
END_SECONDS = 2.0
DEATHS = (
    failures.RayActorError,
    failures.WorkerCrashedError,
    failures.NodeDiedError,
    failures.OutOfMemoryError,
    failures.ObjectLostError,  # the reply was on a node that is gone
)
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Worker(Queue):
    """An actor as the engine sees it.

    Attributes
    ----------
    started, placed
        Come when the actor can begin, and when Ray has a place for it; the second is None when that is known.
    since
        When the actor was asked for, or when its first running call began, in seconds of `time.monotonic`.
    look
        When to see whether Ray can place it, in the same seconds.
    """

    number: int = 0
    actor: Any = None
    started: Any = None
    placed: Any = None
    ready: bool = False
    starts: int = 0
    since: float = 0.0
    look: float = 0.0


class RayEngine(Engine):
    """Runs the clients in actors; a client stays with its actor, so its data and its state do not travel.

    The arrays that several clients get are sent once to each node. An actor that dies is replaced, its clients are
    set back to their last checkpoint, and those that it had not answered for are asked again, one by one: whoever
    makes the second one die too is left out.

    Parameters
    ----------
    address
        Of an existing cluster (``auto`` finds it); without one, Ray is started on this machine. Checkpoints need a
        file system that all of its nodes share.
    gpus_per_worker
        May be a fraction.
    cache_bytes
        Of the clients' states that each worker holds in memory; the others are on disk.

    Raises
    ------
    ConfigError
        If Ray cannot be reached, or does not have the processors or GPUs that the workers need.
    """

    def __init__(
        self,
        make_app: Callable[[], ClientApp],
        clients: int,
        workers: int = 0,
        address: str | None = None,
        gpus_per_worker: float = 0.0,
        deadline: float | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        super().__init__(clients, workers, deadline)
        self._workers: list[_Worker] = []
        self._started = not ray.is_initialized()
        self._session = _start(address, self.workers) if self._started else None
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        if address and not workers:
            self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        count = min(self.workers, clients)
        self._needs = {"CPU": 1.0, "GPU": gpus_per_worker}
        self._check_resources(count)
        self._app = make_app, clients, cache_bytes
        self._actor = ray.remote(num_cpus=1, num_gpus=gpus_per_worker)(Actor)
        self._workers = [_Worker(number=number) for number in range(count)]
        # The worker of the clients k, k + n, k + 2 n, ... is at place k of n.
        self._homes = list(self._workers)
        for worker in self._workers:
            self._start_actor(worker)
        self._journal = Journal()
        self._costs = Costs()
        self._cohort = 1
        self._numbers = itertools.count()
        self._forget()

    def handle(self, messages: list[Message]) -> Iterator[Message]:
        """Send each actor the messages of its clients, in calls of many messages."""
        self._forget()
        self._journal.begin(messages)
        try:
            for number, message in zip(self._share(messages), messages, strict=True):
                while number not in self._done:
                    self._advance(self._home(message.metadata.dst_node_id))
                reply, size = self._done.pop(number)
                self._held -= size
                yield reply
                del reply
        finally:
            self._forget()

    def save_clients(self, folder: Path, clients: Iterable[int], server_round: int) -> None:
        """Let each actor write the state of its clients."""
        clients, folder = list(clients), folder.resolve()
        self._at_homes(clients, lambda actor, batch: actor.save.remote(folder, batch, server_round))
        self._journal.saved(folder, dict.fromkeys(clients, server_round))

    def load_clients(self, folder: Path, rounds: Mapping[int, int]) -> None:
        """Let each actor read the state of its clients."""
        folder = folder.resolve()
        self._at_homes(rounds, lambda actor, batch: actor.load.remote(folder, {k: rounds[k] for k in batch}))
        self._journal.saved(folder, rounds)

    def close(self) -> None:
        """End the actors without waiting for their clients, and Ray if it was started here."""
        idle = [worker.actor.end.remote() for worker in self._workers if worker.ready and not worker.running]
        if idle:
            ray.wait(idle, num_returns=len(idle), timeout=END_SECONDS)
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers = []
        if self._started:
            _stop(self._session)
            self._started = False
        torch.set_num_threads(self._threads_before)

    # Sending and receiving.

    def _forget(self) -> None:
        """Let go of a round's messages and replies."""
        self._packer = Packer()
        self._common: Any = []
        self._places: dict[int, int] = {}
        self._done: dict[int, tuple[Message, int]] = {}
        self._held = 0
        for worker in self._workers:
            worker.waiting.clear()

    def _share(self, messages: list[Message]) -> list[int]:
        """Queue messages at their clients' workers, and put what they have in common where each node reads it once."""
        if common := self._packer.common(messages):
            self._common = ray.put(common)
            self._places = {id(buffer): place for place, buffer in enumerate(common)}
        numbers = [next(self._numbers) for _ in messages]
        for number, message in zip(numbers, messages, strict=True):
            self._home(message.metadata.dst_node_id).waiting.append(Item(message, number))
        return numbers

    def _home(self, client: int) -> _Worker:
        return self._homes[client % len(self._homes)]

    def _advance(self, needed: _Worker | None = None) -> None:
        """Send what can be sent, and take in what comes first: a result, a death, or the end of somebody's time.

        Parameters
        ----------
        needed
            The worker whose reply is waited for, which goes on however much is held.
        """
        for worker in self._workers:
            if worker is needed or self._held < HELD_BYTES:
                self._send(worker)
        results = {}
        for worker in self._workers:
            if not worker.ready:
                results[worker.started] = worker
            elif worker.running:
                results[worker.running[0].result] = worker
        done, _ = ray.wait(list(results), num_returns=1, timeout=self._seconds_left())
        for result in done:
            self._receive(results[result], result)
        self._check_clocks()

    def _send(self, worker: _Worker) -> None:
        """Give a worker its next calls; with a deadline one client at a time, so that it is clear whose time runs."""
        while worker.ready and worker.waiting and worker.has_room(1 if self.deadline else CALLS_AHEAD):
            size = 1 if self.deadline else self._costs.messages(worker.waiting[0].message, self._cohort)
            items = worker.take(size, self._journal)
            data, buffers = self._packer.pack([item.message for item in items])
            places = [self._places.get(id(buffer), -1) for buffer in buffers]
            own = [buffer for buffer, place in zip(buffers, places, strict=True) if place < 0]
            worker.since = worker.since if worker.running else time.monotonic()
            worker.running.append(Call(worker.actor.answer.remote(data, places, own, self._common), items))

    def _receive(self, worker: _Worker, result: Any) -> None:
        try:
            value = ray.get(result)
        except DEATHS as error:
            self._bury(worker, _reason(error))
        except failures.RayTaskError as error:
            _raise_cause(error)
        except failures.RayError as error:
            raise RunError(f"Ray failed ({_reason(error)}); run the same command again to continue") from error
        else:
            if worker.ready:
                items, worker.since = worker.running.popleft().items, time.monotonic()
                if items:
                    self._take_in(items, *value)
            else:
                worker.ready, worker.starts, self._cohort = True, 0, value

    def _take_in(self, items: list[Item], data: bytes, buffers: list[Buffer], seconds: float) -> None:
        size = sum(buffer.nbytes for buffer in buffers) // len(items)
        self._costs.note(items[0].message, size, seconds / len(items))
        for item, reply in zip(items, unpack(data, buffers), strict=True):
            if item.number is None:
                if reply.has_error():
                    self.restored |= self._journal.give_up(item.client)
                continue
            if not reply.has_error():
                self._journal.answered(item.message)
            self._done[item.number] = reply, size
            self._held += size

    # Time.

    def _seconds_left(self) -> float | None:
        """Return the time until `_check_clocks` may find something; None if it cannot."""
        ends = [end for worker in self._workers if (end := self._end(worker)) is not None]
        return max(0.001, min(ends) - time.monotonic()) if ends else None

    def _end(self, worker: _Worker) -> float | None:
        """Return when to look after a worker that has not replied."""
        if not worker.ready:
            return worker.look if worker.placed else None
        return worker.since + self.deadline if self.deadline and worker.running and worker.running[0].items else None

    def _check_clocks(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            end = self._end(worker)
            if end is None or now < end:
                continue
            if worker.ready:
                self._leave_out(worker.running.popleft().items, self.overdue)
                self._bury(worker, f"a client of it had more than {self.deadline:g} s")
            else:
                self._look_for(worker)

    def _look_for(self, worker: _Worker) -> None:
        """Give up a worker that has no place; Ray may need a while to notice that a node is gone."""
        waited = time.monotonic() - worker.since
        if ray.wait([worker.placed], timeout=0)[0]:
            worker.placed = None  # it builds its app, for which there is no limit
        elif waited > PLACEMENT_SECONDS or self._room() < len(self._workers):
            self._retire(worker, f"Ray found no place for it in {waited:.0f} s")
        else:
            worker.look += LOOK_SECONDS

    def _leave_out(self, items: list[Item], reply: Callable[[Message], Message]) -> None:
        for item in items:
            if item.number is None:
                self.restored |= self._journal.give_up(item.client)
            else:
                self._done[item.number] = reply(item.message), 0

    # Life and death.

    def _start_actor(self, worker: _Worker) -> None:
        worker.actor = self._actor.remote(self._session)
        worker.placed, worker.started = worker.actor.placed.remote(), worker.actor.start.remote(*self._app)
        worker.ready, worker.starts, worker.since = False, worker.starts + 1, time.monotonic()
        worker.look = worker.since + LOOK_SECONDS

    def _bury(self, worker: _Worker, reason: str) -> None:
        """Replace a worker that died, or give its clients to another if there is no place for a new one."""
        if worker.starts >= STARTS:
            raise RunError(f"Ray's workers die as they start ({reason}); use fewer engine.workers")
        if self._room() < len(self._workers):
            self._retire(worker, reason)
            return
        ray.kill(worker.actor)
        self._put_back(worker)
        self._start_actor(worker)
        self._set_back(worker, self._clients_of(worker), f"worker {worker.number} died ({reason}) and was replaced")

    def _retire(self, worker: _Worker, reason: str) -> None:
        """Give the clients of a worker to the one that has the fewest."""
        ray.kill(worker.actor)
        self._workers.remove(worker)
        if not self._workers:
            raise RunError(f"no Ray worker is left ({reason}); run the same command again when Ray has the resources")
        self._put_back(worker)
        heir, clients = min(self._workers, key=self._homes.count), self._clients_of(worker)
        self._homes = [heir if home is worker else home for home in self._homes]
        heir.add(worker.waiting)
        self._set_back(heir, clients, f"worker {worker.number} is gone ({reason}), worker {heir.number} takes over")

    def _put_back(self, worker: _Worker) -> None:
        self._leave_out(worker.put_back(), lambda message: error_reply(message, "its worker died twice at its turn"))

    def _clients_of(self, worker: _Worker) -> list[int]:
        return [client for client in self._journal.known() if self._home(client) is worker]

    def _set_back(self, worker: _Worker, clients: list[int], what: str) -> None:
        """Bring clients to their last checkpoint, on the worker that they have now."""
        files, restored = self._journal.set_back(clients)
        for folder, rounds in files.items():
            worker.running.append(Call(worker.actor.load.remote(folder, rounds), []))
        self.restored |= restored
        logger.warning("%s; %s", what, in_words(restored) or "its clients lost nothing")

    def _room(self) -> int:
        """Return how many workers there is room for in all of Ray."""
        return sum(
            min(int(node["Resources"].get(name, 0) / need + 1e-6) for name, need in self._needs.items() if need)
            for node in ray.nodes()
            if node["Alive"]
        )

    def _check_resources(self, workers: int) -> None:
        """Refuse what Ray would wait for without end."""
        there = ray.cluster_resources()
        for resource, need in self._needs.items():
            if workers * need > there.get(resource, 0):
                self.close()
                raise ConfigError(
                    f"the engine's workers need {workers * need:g} {resource}s and Ray has {there.get(resource, 0):g}; "
                    "use fewer engine.workers or a smaller engine.gpus_per_worker"
                )

    # Checkpoints.

    def _at_homes(self, clients: Iterable[int], call: Callable[[Any, list[int]], Any]) -> None:
        """Call every actor with those of the clients that are there, also those that take a dead one's place."""
        left = list(clients)
        for _ in range(CHECKPOINT_DEATHS):
            self._repeat(left)
            left = self._call(left, call)
            if not left:
                return
        raise RunError(f"Ray's workers died {CHECKPOINT_DEATHS} times at a checkpoint; use fewer engine.workers")

    def _call(self, clients: list[int], call: Callable[[Any, list[int]], Any]) -> list[int]:
        """Call every actor with those of the clients that are there; return the clients of those that died."""
        batches: dict[int, list[int]] = {}
        for client in clients:
            batches.setdefault(self._workers.index(self._home(client)), []).append(client)
        workers = [(self._workers[place], batch) for place, batch in batches.items()]
        results = [call(worker.actor, batch) for worker, batch in workers]
        left = []
        for (worker, batch), result in zip(workers, results, strict=True):
            try:
                ray.get(result)
            except DEATHS as error:
                self._bury(worker, _reason(error))
                left += batch
            except failures.RayTaskError as error:
                _raise_cause(error)
        return left

    def _repeat(self, clients: list[int]) -> None:
        """Let clients answer again what a worker that died had answered: it leaves the state that was lost."""
        self._settle()
        while messages := self._journal.waiting(clients):
            for message in messages:
                client = message.metadata.dst_node_id
                self._journal.to_repeat(client)
                self._home(client).waiting.append(Item(message, None))
            self._settle()

    def _settle(self) -> None:
        """Wait until every worker has started and has nothing to do."""
        while any(not worker.ready or worker.running or worker.waiting for worker in self._workers):
            self._advance()


def _start(address: str | None, workers: int) -> str | None:
    """Connect to a cluster, or start Ray here and return the folder of its files."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            ray.init(address=address, runtime_env={"env_vars": variables()}, **quiet)
        except (ValueError, ConnectionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"engine.address = {address!r}: Ray cannot be reached ({reason}); leave it out to start Ray here"
            ) from error
        return None
    # Ray's processes inherit the variables; with a runtime_env it would start every worker anew.
    with inherited(variables()), _few_processes():
        context: Any = ray.init("local", num_cpus=workers, include_dashboard=False, **quiet)
    return context.address_info["session_dir"]


@contextmanager
def _few_processes() -> Iterator[None]:
    """Start Ray without its dashboard, log monitor and autoscaler: a quarter of the time, and nobody would ask them.

    Ray has no setting for that; where it has changed, it starts them.
    """
    names = [name for name in ("start_api_server", "start_log_monitor", "start_monitor") if hasattr(Node, name)]
    before = {name: getattr(Node, name) for name in names}
    for name in names:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def _stop(session: str | None) -> None:
    """End what `_start` began, and remove the files of a Ray that was started here."""
    ray.shutdown()
    if session:
        shutil.rmtree(session, ignore_errors=True)
        # Ray would never set it again if it pointed nowhere.
        latest = Path(session).with_name("session_latest")
        if latest.is_symlink() and not latest.exists():
            latest.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """Return what Ray says about a failure, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _raise_cause(error: failures.RayTaskError) -> NoReturn:
    """Raise what a worker's code raised, without what Ray wraps around it."""
    raise error.cause if isinstance(error.cause, Exception) else error
