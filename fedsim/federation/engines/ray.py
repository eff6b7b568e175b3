"""Clients in Ray actors, on this machine or a cluster."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from flwr.app import Message
from flwr.clientapp import ClientApp
from ray import exceptions as failures

from fedsim.errors import RunError
from fedsim.federation.client.reasons import CRASHED
from fedsim.federation.engines import grid, starting
from fedsim.federation.engines.actor import places
from fedsim.federation.engines.clients import CACHE_BYTES
from fedsim.federation.engines.failing import DEATHS, raise_cause, reason_of
from fedsim.federation.engines.grid import Engine, Restored, error_reply
from fedsim.federation.engines.journal import Journal
from fedsim.federation.engines.packing import Buffer, Packer, Shared, unpack
from fedsim.federation.engines.queues import Call, Costs, Item
from fedsim.federation.engines.reaching import CLIENT
from fedsim.federation.engines.scratch import Scratch
from fedsim.federation.engines.state_files import StateFiles
from fedsim.federation.engines.states import files_of
from fedsim.federation.engines.workers import SAVED_AT_ONCE, Worker, Workers, check_resources, content_of, room
from fedsim.results.files import write_whole

CALLS_AHEAD = 2  # per worker, so that it is never idle between calls
HELD_BYTES = 2**30  # of replies that wait for an earlier one
CHECKPOINT_DEATHS = 3


class RayEngine(Engine):
    """Runs the clients in actors; a client stays with its actor, so its data and its state do not travel.

    Arrays that several clients receive are sent once to each machine. An actor that dies is replaced, or its clients
    are shared out where there is no room for another. They are set back to their last checkpoint, and those that it had
    not answered for are asked again, one by one: a client that crashes the second actor too is left out. Machines that
    join the cluster get workers when the next round of training begins. Files are on this machine only.

    Parameters
    ----------
    address
        Address of an existing cluster (``auto`` finds it); without one, Ray is started on this machine.
    gpus_per_worker
        Number of GPUs per worker, which may be a fraction.
    cache_bytes
        Size of the clients' states that each worker holds in memory; the others are on disk.
    shared
        What ``make_app`` gets, if anything: each machine has one copy of its tensors and arrays.

    Raises
    ------
    ConfigError
        If Ray cannot be reached, or does not have the processors or GPUs that the workers need.
    """

    def __init__(
        self,
        make_app: Callable[..., ClientApp],
        clients: int,
        workers: int = 0,
        address: str | None = None,
        gpus_per_worker: float = 0.0,
        deadline: float | None = None,
        cache_bytes: int = CACHE_BYTES,
        shared: Any = None,
    ) -> None:
        super().__init__(clients, workers, deadline)
        self._started = not ray.is_initialized()
        self.scratch = self._start(address) if self._started else None
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._journal = Journal()
        try:
            needs = {"CPU": 1.0, "GPU": gpus_per_worker}
            if not workers:
                self.workers = max(1, room(needs))
            count = min(self.workers, clients)
            check_resources(needs, count)
            in_store = None if shared is None else ray.put(Shared.of(shared))  # which holds it once on each machine
            app = (make_app, clients, cache_bytes, places(), in_store)
            self._workers = Workers(count, app, needs, str(self.scratch.path) if self.scratch else None, self._journal)
            self._node = "" if (address or "").startswith(CLIENT) else ray.get_runtime_context().get_node_id()
        except BaseException:
            self._disconnect()
            raise
        self._most = clients if address and not workers else count
        self._costs = Costs()
        self._cohort = 1
        self._numbers = itertools.count()
        self._forget()

    def handle(self, messages: list[Message]) -> Iterator[Message]:
        """Send each actor the messages of its clients, in calls of many messages."""
        self._forget()
        if self._journal.begin(messages):
            self._workers.grow(self._most)
        try:
            for number, message in zip(self._share(messages), messages, strict=True):
                while number not in self._done:
                    self._advance(self._workers.home(message.metadata.dst_node_id))
                reply, size = self._done.pop(number)
                self._held -= size
                yield reply
                del reply
        finally:
            self._forget()

    def save_clients(self, folder: Path, clients: Iterable[int], server_round: int) -> None:
        """Write the state of the clients: those of actors on other machines travel here."""
        clients, folder = list(clients), folder.resolve()
        size = SAVED_AT_ONCE * self.workers
        for start in range(0, len(clients), size):
            self._save(StateFiles(folder), clients[start : start + size], server_round)
        self._journal.saved(folder, dict.fromkeys(clients, server_round))

    def load_clients(self, folder: Path, rounds: Mapping[int, int]) -> None:
        """Note which file has each client's state, which it gets with its next message."""
        folder = folder.resolve()
        for client, path in files_of(folder, rounds).items():
            self._workers.home(client).states[client] = path
        self._journal.saved(folder, rounds)

    def close(self) -> None:
        """End the actors without waiting for their clients, and Ray if it was started here."""
        self._workers.end()
        self._disconnect()

    @property
    def actors(self) -> list[Any]:
        """Ray's handles of the workers."""
        return [worker.actor for worker in self._workers]

    def take_restored(self) -> dict[int, Restored]:
        """Return the clients that were set back since the last call."""
        return self._workers.take_restored()

    def _start(self, address: str | None) -> Scratch | None:
        """Connect to the cluster at an address, or start Ray here."""
        if address is None:
            return starting.start(self.workers)
        starting.connect(address)
        return None

    def _disconnect(self) -> None:
        """Stop Ray if it was started here."""
        if self._started:
            starting.stop(self.scratch)
            self._started = False
        torch.set_num_threads(self._threads_before)

    # Sending and receiving.

    def _forget(self) -> None:
        """Release a round's messages and replies."""
        self._packer = Packer()
        self._common: Any = []
        self._places: dict[int, int] = {}
        self._done: dict[int, tuple[Message, int]] = {}
        self._held = 0
        for worker in self._workers:
            worker.waiting.clear()

    def _share(self, messages: list[Message]) -> list[int]:
        """Queue messages at their clients' workers, and put their common arrays where each node reads them once."""
        if common := self._packer.common(messages):
            self._common = ray.put(common)
            self._places = {id(buffer): place for place, buffer in enumerate(common)}
        numbers = [next(self._numbers) for _ in messages]
        for number, message in zip(numbers, messages, strict=True):
            self._workers.home(message.metadata.dst_node_id).waiting.append(Item(message, number))
        return numbers

    def _advance(self, needed: Worker | None = None) -> None:
        """Send what can be sent, and wait for what comes first: a result, a death, or the end of a deadline.

        Parameters
        ----------
        needed
            Worker whose reply is awaited; it continues however much is held.
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

    def _send(self, worker: Worker) -> None:
        """Send a worker its next calls; with a deadline, one client at a time, to know which one is late."""
        while worker.ready and worker.waiting and worker.has_room(1 if self.deadline else CALLS_AHEAD):
            size = 1 if self.deadline else self._costs.messages(worker.waiting[0].message, self._cohort)
            items = worker.take(size, self._journal)
            data, buffers = self._packer.pack([item.message for item in items])
            places = [self._places.get(id(buffer), -1) for buffer in buffers]
            own = [buffer for buffer, place in zip(buffers, places, strict=True) if place < 0]
            states = worker.take_states((item.client for item in items), is_here=worker.node == self._node)
            worker.since = worker.since if worker.running else time.monotonic()
            worker.running.append(Call(worker.actor.answer.remote(data, places, own, states, self._common), items))

    def _receive(self, worker: Worker, result: Any) -> None:
        try:
            if not worker.ready and (removed := self._workers.meet(worker)) is not None:
                self._leave_out(removed, _crashed)
                return
            value = ray.get(result)
        except DEATHS as error:
            self._replace(worker, reason_of(error))
        except failures.RayTaskError as error:
            if not worker.joined:
                raise_cause(error)
            self._leave_out(self._workers.remove(worker, reason_of(error)), _crashed)
        except failures.RayError as error:
            raise RunError(f"Ray failed ({reason_of(error)}); run the same command again to continue") from error
        else:
            if worker.ready:
                items, worker.since = worker.running.popleft().items, time.monotonic()
                self._take_in(items, *value)
            else:
                worker.ready, worker.starts, worker.joined, self._cohort = True, 0, False, value

    def _take_in(self, items: list[Item], data: bytes, buffers: list[Buffer], seconds: float) -> None:
        size = sum(buffer.nbytes for buffer in buffers) // len(items)
        self._costs.note(items[0].message, size, seconds / len(items))
        for item, reply in zip(items, unpack(data, buffers), strict=True):
            if item.number is None:
                if reply.has_error():
                    self._workers.give_up([item], grid.reason_of(reply))
                continue
            if not reply.has_error():
                self._journal.answered(item.message)
            self._done[item.number] = reply, size
            self._held += size

    # Deadlines.

    def _seconds_left(self) -> float | None:
        """Return the seconds until `_check_clocks` may find something; None if it cannot."""
        ends = [end for worker in self._workers if (end := self._end(worker)) is not None]
        return max(0.001, min(ends) - time.monotonic()) if ends else None

    def _end(self, worker: Worker) -> float | None:
        """Return when to check on a worker that has not replied."""
        if not worker.ready:
            return worker.look
        return worker.since + self.deadline if self.deadline and worker.running else None

    def _check_clocks(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            end = self._end(worker)
            if end is None or now < end:
                continue
            if worker.ready:
                reason = f"one of its clients ran for more than {self.deadline:g} s"
                overdue = self._workers.give_up(worker.running.popleft().items, reason)
                self._leave_out(overdue, self.overdue)
                self._replace(worker, reason)
            else:
                self._leave_out(self._workers.look_for(worker), _crashed)

    def _leave_out(self, items: list[Item], reply: Callable[[Message], Message]) -> None:
        for item in items:
            assert item.number is not None
            self._done[item.number] = reply(item.message), 0

    def _replace(self, worker: Worker, reason: str) -> None:
        self._leave_out(self._workers.replace(worker, reason), _crashed)

    # Checkpoints.

    def _save(self, files: StateFiles, clients: Sequence[int], server_round: int) -> None:
        """Write the states of some clients, also of those whose actors have died meanwhile."""
        left = clients
        for _ in range(CHECKPOINT_DEATHS):
            self._repeat(left)
            left = self._save_once(files, left, server_round)
            if not left:
                return
        raise RunError(f"Ray's workers died {CHECKPOINT_DEATHS} times at a checkpoint; use fewer engine.workers")

    def _save_once(self, files: StateFiles, clients: Sequence[int], server_round: int) -> list[int]:
        """Write the states of clients; return the clients of actors that died."""
        batches: dict[Worker, list[int]] = {}
        for client in clients:
            worker = self._workers.home(client)
            if client in worker.states:
                write_whole(files.path(client, server_round), content_of(worker.states[client]))
                worker.states[client] = files.path(client, server_round)
            else:
                batches.setdefault(worker, []).append(client)
        results = {}
        for worker, batch in batches.items():
            is_here = worker.node == self._node
            actor = worker.actor
            results[worker] = (
                actor.save.remote(files.folder, batch, server_round) if is_here else actor.encoded.remote(batch)
            )
        left = []
        for worker, result in results.items():
            try:
                for client, state in (ray.get(result) or {}).items():
                    write_whole(files.path(client, server_round), bytes(state))
            except DEATHS as error:
                self._replace(worker, reason_of(error))
                left += batches[worker]
            except failures.RayTaskError as error:
                raise_cause(error)
        return left

    def _repeat(self, clients: Iterable[int]) -> None:
        """Let clients answer again what a dead worker had answered, which restores the state that was lost."""
        self._settle()
        while messages := self._journal.waiting(clients):
            for message in messages:
                client = message.metadata.dst_node_id
                self._journal.to_repeat(client)
                self._workers.home(client).waiting.append(Item(message, None))
            self._settle()

    def _settle(self) -> None:
        """Wait until every worker has started and is idle."""
        while any(not worker.ready or worker.running or worker.waiting for worker in self._workers):
            self._advance()


def _crashed(message: Message) -> Message:
    return error_reply(message, CRASHED)
