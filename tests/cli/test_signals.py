"""How the command line ends when it is told to."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fedsim.cli import signals as module
from fedsim.cli.signals import SIGNALS, Signals, run_heeding_signals


class EndedAtOnceError(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Leave signals as they were, and collect the exit codes with which the process would have ended at once."""
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        if threading.current_thread() is threading.main_thread():
            raise EndedAtOnceError

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(module.atexit, "register", lambda *_: None)
    before = {each: signal.signal(each, signal.SIG_DFL) for each in SIGNALS}
    yield codes
    if (pipe := signal.set_wakeup_fd(-1)) >= 0:
        os.close(pipe)
    for each, handler in before.items():
        signal.signal(each, handler)


def wait_until(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_true()


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 1), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_command_with_one_line_and_its_code(
    name: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_heeding_signals(lambda: lambda: signal.raise_signal(getattr(signal, name)))
    assert end.value.code == code
    assert capsys.readouterr().err == "fedsim: error: stopped\n"


def test_a_command_that_says_why_it_stopped_says_so_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            print("said", file=sys.stderr)
            sys.exit(1)

    with pytest.raises(SystemExit) as end:
        run_heeding_signals(lambda: command)
    assert (end.value.code, capsys.readouterr().err) == (143, "said\n")


def test_a_command_that_is_done_has_its_own_code_and_leaves_the_signals_as_they_were() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with pytest.raises(SystemExit) as end:
        run_heeding_signals(lambda: lambda: sys.exit(2))
    assert end.value.code == 2
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_a_signal_during_the_imports_ends_the_command_at_once(
    ended: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with Signals().heeded(), pytest.raises(EndedAtOnceError):
        signal.raise_signal(signal.SIGTERM)
    assert ended == [143]
    assert capsys.readouterr().err == "fedsim: error: stopped\n"


def interrupted(signals: Signals) -> None:
    signals.at_once = False
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_a_second_signal_ends_the_command_at_once_and_one_sent_twice_does_not(
    ended: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "TOGETHER_SECONDS", 0.2)
    with (signals := Signals()).heeded():
        interrupted(signals)
        signal.raise_signal(signal.SIGTERM)
        assert ended == []
        time.sleep(0.3)
        with pytest.raises(EndedAtOnceError):
            signal.raise_signal(signal.SIGHUP)
        wait_until(lambda: ended == [143, 143])  # by the thread too, which hears it where the main thread does not
    assert capsys.readouterr().err == ""


def test_a_command_that_does_not_end_is_ended(
    ended: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "TOGETHER_SECONDS", 0.0)
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.1)
    with (signals := Signals()).heeded():
        interrupted(signals)
        wait_until(lambda: ended == [143])
    assert capsys.readouterr().err == "fedsim: error: stopped\n"


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with Signals().heeded():
        signal.raise_signal(signal.SIGHUP)
