"""What the local engine does with clients that fail, hang or are no longer wanted."""

import asyncio
import errno
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.federation.client.app import CohortApp
from fedsim.federation.engines.clients import Clients
from fedsim.federation.engines.local import LocalEngine
from fedsim.results.folder import RunFolder
from fedsim.strategy import messages
from tests import commands


def app_of(answer: Callable[[int, RecordDict], object], app: ClientApp | None = None) -> ClientApp:
    """Return an app whose clients count their messages and then do what ``answer`` does."""
    app = app or ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        stored = messages.decode(context.state.array_records["count"]) if context.state else {}
        count = stored.get("n", torch.zeros(())) + 1
        context.state["count"] = messages.encode({"n": count})
        if answer(context.node_id, message.content) == "nothing":
            return None  # type: ignore[return-value]
        return Message(RecordDict({"metrics": MetricRecord({"count": count.item()})}), reply_to=message)

    return app


def cohort_app(cohort: int, together: Callable[[list[tuple[Message, Context]]], list[RecordDict]]) -> CohortApp:
    """Return an app whose clients answer alone as a cohort of one does."""
    app = CohortApp(cohort, together)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(together([(message, context)])[0], reply_to=message)

    return app


def ask(engine: LocalEngine, clients: range) -> list[float | str]:
    """Return what each client has counted, or why it has not answered, in the order of the clients."""
    replies = list(engine.send_and_receive([Message(RecordDict(), k, MessageType.TRAIN) for k in clients]))
    assert [reply.metadata.src_node_id for reply in replies] == list(clients)
    return [r.error.reason if r.has_error() else r.content["metrics"]["count"] for r in replies]


class Clock:
    """Seconds that pass when a client works, so that no test waits for them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.seconds

    def work(self, seconds: float) -> None:
        with self._lock:
            self.seconds += seconds


def test_a_client_that_exceeds_its_deadline_is_left_behind_and_keeps_its_state() -> None:
    hanging, clock = {3}, Clock()

    def answer(client: int, content: RecordDict) -> None:
        while client in hanging:
            time.sleep(0.001)
        clock.work(2.0)

    # The eight clients after client 3 take longer than its deadline, and those that run at the same time as another
    # have time for three more.
    with LocalEngine(partial(app_of, answer), 12, workers=2, deadline=10.0, clock=clock) as engine:
        late = "it timed out after 10 s"
        assert ask(engine, range(12)) == [*[1] * 3, late, *[1] * 8]
        assert ask(engine, range(12)) == [*[2] * 3, late, *[2] * 8]
        hanging.clear()
        assert ask(engine, range(12)) == [*[3] * 3, 1, *[3] * 8]


def test_the_clock_of_a_client_starts_when_a_worker_begins_with_it() -> None:
    clock = Clock()
    with LocalEngine(
        partial(app_of, lambda client, content: clock.work(3.0)), 8, workers=1, deadline=4.0, clock=clock
    ) as engine:
        assert ask(engine, range(8)) == [1] * 8
    assert clock.seconds == 24.0


def test_what_a_client_does_after_it_was_abandoned_counts_for_nothing() -> None:
    def answer(client: int, content: RecordDict) -> None:
        if client == 1:
            clients.abandon(1)

    clients = Clients(app_of(answer), 2)
    for client in (0, 1, 0, 1):
        clients.answer(Message(RecordDict(), client, MessageType.TRAIN))
    assert bool(clients.context_of(0).state)
    assert not clients.context_of(1).state


@pytest.mark.slow
def test_an_engine_that_ends_at_once_leaves_no_exception_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that starts or ends at that moment has nothing that would catch the exception by which it is stopped."""
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200):
            LocalEngine(partial(app_of, lambda client, content: None), 4, workers=3).close()
    finally:
        sys.setswitchinterval(interval)
    assert raised == []


def test_a_client_that_returns_nothing_answers_with_an_error_and_keeps_its_state() -> None:
    silent = {1}
    with LocalEngine(
        partial(app_of, lambda client, content: "nothing" if client in silent else ""), 3, workers=2
    ) as engine:
        nothing = "the client returned a NoneType; it must return a Message"
        assert ask(engine, range(3)) == [1, nothing, 1]
        silent.clear()
        assert ask(engine, range(3)) == [2, 1, 2]


class Unspeakable(BaseException):
    """No `Exception`, and without a message that could be read."""

    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Unspeakable])
@pytest.mark.parametrize("cohort", [1, 2])
def test_whatever_a_client_raises_is_a_fault_of_that_client(kind: type[BaseException], cohort: int) -> None:
    def answer(client: int, content: RecordDict) -> None:
        if client == 1:
            raise kind

    def fail(requests: object) -> list[RecordDict]:
        raise kind

    with LocalEngine(lambda: app_of(answer, CohortApp(cohort, fail)), 3, workers=2) as engine:
        for count in (1, 2):
            first, failed, last = ask(engine, range(3))
            assert (first, last) == (count, count)
            assert re.fullmatch(rf"{kind.__name__}(: [^:]+)? \(test_local_engine.py, line \d+\)", str(failed))


def test_an_error_of_the_engine_itself_ends_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait forever for a thread that is dead."""

    def fail(clients: Clients, messages: list[Message]) -> list[Message]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with LocalEngine(partial(app_of, lambda client, content: None), 3, workers=2) as engine:
        with monkeypatch.context() as broken:
            broken.setattr(Clients, "answer_all", fail)
            with pytest.raises(OSError, match="No space left"):
                ask(engine, range(1))
        assert ask(engine, range(3)) == [1, 1, 1]


@pytest.mark.parametrize("cohort", [1, 3])
def test_a_full_disk_for_states_ends_the_round_and_takes_no_clients_state(
    cohort: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:8])
        raise OSError(errno.ENOSPC, "No space left on device")

    def together(requests: list[tuple[Message, Context]]) -> list[Message]:
        return [app(*request) for request in requests]

    app = app_of(lambda client, content: None, CohortApp(cohort, together))
    with LocalEngine(lambda: app, 4, workers=1, cache_bytes=1) as engine:
        with monkeypatch.context() as full:
            full.setattr(Path, "write_bytes", write)
            for asked in ([0, 1], [0]):  # the last one finds no room: of others behind it, the reply would come later
                with pytest.raises(OSError, match=r"No space left on device: .*states.*\d\.safetensors"):
                    ask(engine, asked)
        assert ask(engine, range(3)) == [3, 2, 1]


def test_a_cohort_that_fails_is_tried_client_by_client() -> None:
    """Client 2 spoils every cohort that it is in."""
    tried = []

    def together(requests: list[tuple[Message, Context]]) -> list[RecordDict]:
        tried.append([context.node_id for _, context in requests])
        if 2 in tried[-1]:
            raise ValueError("client 2 has no luck")  # here
        return [RecordDict({"metrics": MetricRecord({"count": 10.0})}) for _ in requests]

    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("  # here"))
    place = f"test_local_engine.py, line {line}"
    with LocalEngine(partial(cohort_app, 3, together), 7, workers=1) as engine:
        assert ask(engine, range(7)) == [10, 10, f"ValueError: client 2 has no luck ({place})", 10, 10, 10, 10]
    assert tried == [[0, 1, 2], [0], [1], [2], [3, 4, 5], [6]]


def test_clients_that_fail_only_together_are_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    def together(requests: list[tuple[Message, Context]]) -> list[RecordDict]:
        if len(requests) > 1:
            raise RuntimeError("vmap: it looks like you are calling .item()")
        return [RecordDict({"metrics": MetricRecord({"count": 10.0})})]

    with LocalEngine(partial(cohort_app, 2, together), 4, workers=1) as engine:
        assert ask(engine, range(4)) == ask(engine, range(4)) == [10] * 4
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("clients fail together but not alone (RuntimeError: vmap: it looks like")


EXPERIMENT = """
rounds = 1000
clients = 4
[partition]
scheme = "iid"
[model]
name = "cnn"
[local]
epochs = 3
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_a_run_within_seconds_and_keeps_its_rounds(number: int, code: int, tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(EXPERIMENT)
    err = tmp_path / "err"
    process = commands.start("run", str(tmp_path / "long.toml"), "--out", str(tmp_path), err=err)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("long/*/checkpoints/round-00002")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    said = err.read_text()
    assert process.exitcode == code
    assert "Traceback" not in said
    assert "rerun the same command to resume from the last completed round" in said
    [folder] = [RunFolder(path) for path in tmp_path.glob("long/*")]
    assert 1 <= len(list(folder.checkpoints.glob("round-*"))) <= 2  # the newest two are kept
    assert not folder.done.exists()
