"""Tasks in processes: all are done, whatever happens to one of them, and no process is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from fedsim.experiment.sweep.processes import HAS_FORKSERVER, Died, Ended, Started, side_by_side, start_server

Seen = list[tuple[Any, Any]]


@pytest.fixture(autouse=True, scope="module")
def _server() -> None:
    """Start the server with what other tests need too: there is one for all."""
    start_server(["fedsim.experiment.sweep.sweep"])


def square(task: int, emit: Callable[[Any], None]) -> tuple[int, int]:
    emit(("pid", os.getpid()))
    emit(("half", task))
    return task, task**2


def die_at_two(task: int, emit: Callable[[Any], None]) -> int:
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def sleep(task: int, emit: Callable[[Any], None]) -> None:
    emit(os.getpid())
    while True:
        time.sleep(1)


def do(work: Callable[..., Any], tasks: list[int], jobs: int) -> Seen:
    seen: Seen = []
    side_by_side(work, tasks, jobs, lambda task, event: seen.append((task, event)))
    return seen


def is_there(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and waits for whoever asks how does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_each_task_is_done_once_in_processes_that_are_used_again(jobs: int) -> None:
    seen = do(square, [0, 1, 2, 3, 4], jobs)
    for task in range(5):
        begin, (_, pid), *rest = [event for other, event in seen if other == task]
        assert begin == Started()
        assert pid != os.getpid()
        assert rest == [("half", task), Ended((task, task**2))]
    under_way, pids = 0, set()
    for _, event in seen:
        under_way += isinstance(event, Started) - isinstance(event, Ended)
        assert under_way <= jobs
        if isinstance(event, tuple) and event[0] == "pid":
            pids.add(event[1])
    assert len(pids) <= min(jobs, 5)
    assert not any(map(is_there, pids))


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_process_that_is_killed_does_not_take_the_other_tasks_along(jobs: int) -> None:
    ends = {task: event for task, event in do(die_at_two, [1, 2, 3, 4], jobs) if event != Started()}
    assert ends == {1: Ended(1), 2: Died(-signal.SIGKILL), 3: Ended(3), 4: Ended(4)}


@pytest.mark.slow
def test_an_interrupt_ends_all_processes() -> None:
    pids: list[int] = []

    def interrupt(task: int, event: Any) -> None:
        if isinstance(event, int):
            pids.append(event)
        if len(pids) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side(sleep, [0, 1, 2], 2, interrupt)
    assert len(pids) == 2
    assert not any(map(is_there, pids))


PARENT = """
from fedsim.experiment.sweep.processes import side_by_side
from test_processes import sleep

if __name__ == "__main__":
    side_by_side(sleep, [0, 1], 2, lambda task, event: isinstance(event, int) and print(event, flush=True))
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_FORKSERVER, reason="no process is forked")
def test_an_interrupt_while_processes_start_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    # To this thread, which blocks it: another thread may take one for the process a moment too late.
    monkeypatch.setattr(forkserver, "ensure_running", lambda: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            start_server([])
    finally:
        signal.signal(signal.SIGINT, before)


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(is_there, pids))
        parent.kill()
    deadline = time.monotonic() + 60
    while any(map(is_there, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_there, pids))
