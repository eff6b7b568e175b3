"""Tasks in parallel, each in its own process, which is reused for the next."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, Generic, TypeVar

STOP_SECONDS = 5.0  # a process that was told to stop and has not is killed
HAS_FORKSERVER = "forkserver" in multiprocessing.get_all_start_methods()
Task = TypeVar("Task")
Emit = Callable[[Any], None]


@dataclass(frozen=True)
class Started:
    """A task has begun."""


@dataclass(frozen=True)
class Ended:
    """A task is over, with what its work returned."""

    result: Any


@dataclass(frozen=True)
class Died:
    """A task's process ended before its work did.

    Parameters
    ----------
    exit_code
        Negative if a signal of that number ended it.
    """

    exit_code: int | None


def may_start() -> bool:
    """Tell whether this process may start others, as a worker of a `multiprocessing.Pool` may not."""
    return not multiprocessing.current_process().daemon


def is_importing_script() -> bool:
    """Tell whether this process only imports the user's script, which started it and has no guard against that."""
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def start_server(preload: Sequence[str]) -> None:
    """Begin to import modules in the process from which those of the tasks are forked; without it, each imports them.

    This process itself must not be forked: torch may have started threads in it.
    """
    if HAS_FORKSERVER:
        forkserver.set_forkserver_preload(list(preload))
        _ensure_server()


def side_by_side(
    work: Callable[[Task, Emit], Any], tasks: Sequence[Task], jobs: int, on_event: Callable[[Task, Any], None]
) -> None:
    """Do the work of each task, as many at a time as there are jobs; however this ends, no process is left.

    Parameters
    ----------
    work
        Is picklable, and gets a task and what to call with each event that the parent should see.
    on_event
        Is called here with a task and `Started`, each event of its work, and in the end `Ended` or `Died`.
    """
    waiting = deque(tasks)
    started: list[_Process[Task]] = []
    busy: dict[Any, _Process[Task]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                process = _Process[Task](work)
                started.append(process)
                busy[process.connection] = process
                process.give(waiting.popleft(), on_event)
            for connection in wait(list(busy)):
                process = busy[connection]
                event = process.take(on_event)
                if isinstance(event, Ended) and waiting:
                    process.give(waiting.popleft(), on_event)
                elif isinstance(event, Ended | Died):
                    busy.pop(connection).connection.close()
    finally:
        _end(started, busy.values())


class _Process(Generic[Task]):
    """A process that does one task after the other, and ends when its connection is closed.

    The connection is its own pipe, not a queue of all: a process that is killed as it writes into a queue would
    lock the others out.
    """

    def __init__(self, work: Callable[[Task, Emit], Any]) -> None:
        context = multiprocessing.get_context("forkserver" if HAS_FORKSERVER else "spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)  # type: ignore[attr-defined]
        if HAS_FORKSERVER:  # what is forked ignores what the server ignores; its imports may take seconds
            _ensure_server()
            with _script_hidden():
                self.process.start()
        else:
            with _interrupts_ignored(), _script_hidden():
                self.process.start()
        theirs.close()
        self._task: Task

    def give(self, task: Task, on_event: Callable[[Task, Any], None]) -> None:
        self._task = task
        with suppress(OSError):  # it died; `take` says so
            self.connection.send(task)
        on_event(task, Started())

    def take(self, on_event: Callable[[Task, Any], None]) -> Any:
        """Hand the next event on and return it; the last of a process that has ended is `Died`."""
        try:
            event = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            event = Died(self.process.exitcode)
        on_event(self._task, event)
        return event


def _end(processes: Iterable[_Process[Any]], busy: Iterable[_Process[Any]]) -> None:
    """Stop those that are busy, and wait until all have ended."""
    for each in busy:
        each.process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for each in processes:
        each.process.join(max(0.0, deadline - time.monotonic()))
        each.process.kill()
        each.process.join()


def _ensure_server() -> None:
    resource_tracker.ensure_running()  # which would unblock the signal as it starts
    # Blocked, not ignored as below: an interrupt of this process that comes meanwhile is heard afterwards.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let what is started here ignore Ctrl-C, which a terminal sends to all: the parent alone ends the others."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread sets what a signal does
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _script_hidden() -> Iterator[None]:
    """Keep a new process from running the user's script once more: all that it works on comes from modules."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _serve(connection: Connection, work: Callable[[Any, Emit], Any]) -> None:
    """Do the tasks that come through the connection, until it is closed or the process is told to stop."""
    _handle_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = threading.Lock()

    def emit(event: Any) -> None:
        with lock:  # clients in threads may log
            connection.send(event)

    with suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        while True:
            emit(Ended(work(connection.recv(), emit)))


def _handle_signals() -> None:
    """Let only the parent end this process, and only once, so that what cleans up is not interrupted."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    for name in ("SIGINT", "SIGHUP"):  # which a terminal sends to all
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if HAS_FORKSERVER:  # whose server blocks it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    signal.signal(signal.SIGTERM, stop)


def _end_with_parent() -> None:
    """End this process with its parent, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
