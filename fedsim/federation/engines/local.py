"""All clients in this process, one per thread: the reference for other engines."""

import contextlib
import ctypes
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim.federation.engines.clients import CACHE_BYTES, Clients, Stopped
from fedsim.federation.engines.grid import Engine

STOP_SECONDS = 5.0
Job = tuple[int, list[Message]]  # its number, and the messages of a cohort
Answer = tuple[int, list[Message] | BaseException]  # the same number, and the replies, or an error of the engine


class _Worker(threading.Thread):
    """Answers jobs until it gets None or is stopped.

    Attributes
    ----------
    job, began
        What it is running, and since when in seconds of ``clock``.
    """

    def __init__(
        self,
        clients: Clients,
        jobs: "queue.SimpleQueue[Job | None]",
        done: "queue.SimpleQueue[Answer]",
        clock: Callable[[], float],
    ) -> None:
        super().__init__(daemon=True)
        self._clients, self._jobs, self._done, self._clock = clients, jobs, done, clock
        self._lock = threading.Lock()
        self._catches = False  # whether `Stopped` would be caught
        self.job: Job | None = None
        self.began = 0.0

    def run(self) -> None:
        torch.set_num_threads(1)
        with contextlib.suppress(Stopped):
            self._answer_jobs()

    def _answer_jobs(self) -> None:
        with self._lock:
            self._catches = True
        while (job := self._jobs.get()) is not None:
            with self._lock:
                self.began, self.job = self._clock(), job
            replies = self._replies(job[1])
            with self._lock:
                self.job = None
            self._done.put((job[0], replies))
        with self._lock:
            self._catches = False

    def _replies(self, messages: list[Message]) -> list[Message] | BaseException:
        """Return the replies; an error that is no client's is for the thread that waits, which would wait forever."""
        try:
            return self._clients.answer_all(messages)
        except Stopped:
            raise
        except BaseException as error:
            return error

    def stop(self) -> None:
        """Raise `Stopped` in the thread as soon as it runs Python code; a call of C code is finished first."""
        with self._lock:
            self._interrupt()

    def _interrupt(self) -> None:
        if self._catches:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident or 0), ctypes.py_object(Stopped))

    def stop_overdue(self, deadline: float) -> Job | None:
        """Stop the thread if its job has run for longer; return that job."""
        # The lock keeps it from finishing meanwhile and losing the job that it would take next.
        with self._lock:
            if self.job is None or self._clock() - self.began <= deadline:
                return None
            self._interrupt()
            return self.job


class LocalEngine(Engine):
    """Runs each client, or each cohort of clients, in a thread; one at a time per worker.

    torch spends its time outside Python's lock, so two clients on two threads are faster than one client on both. Each
    uses one intra-op thread, so that no result depends on the number of workers.

    Parameters
    ----------
    cache_bytes
        Size of the clients' states that are held in memory; the others are on disk.
    clock
        Function that returns the time in seconds, for the deadline.
    """

    def __init__(
        self,
        make_app: Callable[[], ClientApp],
        clients: int,
        workers: int = 0,
        deadline: float | None = None,
        cache_bytes: int = CACHE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(clients, workers, deadline)
        self._clock = clock
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._clients = Clients(make_app(), clients, cache_bytes)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._workers = [self._worker() for _ in range(self.workers)]

    def handle(self, messages: list[Message]) -> Iterator[Message]:
        """Answer the messages, one cohort per thread."""
        size = self._clients.cohort
        jobs = [(next(self._numbers), messages[k : k + size]) for k in range(0, len(messages), size)]
        for job in jobs:
            self._jobs.put(job)
        done: dict[int, list[Message]] = {}
        for number, _ in jobs:
            while number not in done:
                done |= self._next()
            yield from done.pop(number)

    def context_of(self, client: int) -> Context:
        """Return a client's number, and a copy of its state."""
        return self._clients.context_of(client)

    def save_clients(self, folder: Path, clients: Iterable[int], server_round: int) -> None:
        """Write the state of these clients."""
        self._clients.save(folder, clients, server_round)

    def load_clients(self, folder: Path, rounds: Mapping[int, int]) -> None:
        """Load the state of these clients."""
        self._clients.load(folder, rounds)

    def close(self) -> None:
        """End the threads, even while clients run."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
        for worker in self._workers:
            self._jobs.put(None)
            worker.stop()
        until = time.monotonic() + STOP_SECONDS
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))
        torch.set_num_threads(self._threads_before)

    def _worker(self) -> _Worker:
        worker = _Worker(self._clients, self._jobs, self._done, self._clock)
        worker.start()
        return worker

    def _next(self) -> dict[int, list[Message]]:
        """Wait for the next replies, or for overdue clients, whose worker is replaced."""
        while True:
            try:
                number, replies = self._done.get(timeout=self._seconds_left())
            except queue.Empty:
                if overdue := self._replace_overdue():
                    return overdue
            else:
                if isinstance(replies, BaseException):
                    raise replies
                return {number: replies}

    def _seconds_left(self) -> float | None:
        """Return the time until the first client is overdue; None without a deadline."""
        if self.deadline is None:
            return None
        busy = [worker.began for worker in self._workers if worker.job]
        return max(0.001, min(busy, default=self._clock()) + self.deadline - self._clock())

    def _replace_overdue(self) -> dict[int, list[Message]]:
        replies = {}
        for place, worker in enumerate(self._workers):
            if self.deadline is not None and (job := worker.stop_overdue(self.deadline)):
                for message in job[1]:
                    self._clients.abandon(message.metadata.dst_node_id)
                self._workers[place] = self._worker()
                replies[job[0]] = [self.overdue(message) for message in job[1]]
        return replies
