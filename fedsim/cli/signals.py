"""How the command line ends when it is told to: by Ctrl-C, by a scheduler (SIGTERM), or with its terminal (SIGHUP)."""

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
GRACE_SECONDS = 15.0  # to remove temporary folders and end other processes
TOGETHER_SECONDS = 0.5  # some senders send a signal to a process and to its group, and mean one
INTERRUPTED = 130  # what typer makes of Ctrl-C, and of a command that ends by it as it should
CLOSED = 0  # no signal has this number
SHOW_CURSOR = "\033[?25h"  # which a progress display hides


class Signals:
    """The signals that a process was told to end by.

    The first one raises `KeyboardInterrupt` in the main thread. A second one ends the process at once, as does the end
    of `GRACE_SECONDS`: the main thread may be in code that hears no signal, or have lost the exception.

    Attributes
    ----------
    first
        The number of the first signal, if there was one.
    at_once
        Whether the first one ends the process too, as there is nothing to clean up.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self._since = 0.0
        self.at_once = True

    @property
    def exit_code(self) -> int:
        """1 after Ctrl-C, as for every run that is not done, and what a scheduler expects after its own signal."""
        return 1 if self.first == signal.SIGINT else 128 + (self.first or 0)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Heed the signals that this process does not ignore, as it does under nohup."""
        before = {each: signal.getsignal(each) for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN}
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()
        wakeup = signal.set_wakeup_fd(writing)
        for each in before:
            signal.signal(each, self._handle)
        try:
            yield
        finally:
            if self.first is None:
                for each, handler in before.items():
                    signal.signal(each, handler)
                signal.set_wakeup_fd(wakeup)
                os.close(writing)

    def end_at_once(self) -> None:
        """End this process without cleaning up: the next run does it."""
        with suppress(OSError, ValueError):  # the terminal is gone
            if sys.stderr.isatty():
                sys.stderr.write(SHOW_CURSOR)
                sys.stderr.flush()
        os._exit(self.exit_code)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.first is not None:
            if time.monotonic() - self._since > TOGETHER_SECONDS:
                self.end_at_once()
            return
        self.first, self._since = number, time.monotonic()
        if self.at_once:
            say_stopped()
            self.end_at_once()
        raise KeyboardInterrupt

    def _watch(self, pipe: int) -> None:
        """End the process where the main thread does not."""
        number = _next(pipe, None)
        if number != CLOSED:
            time.sleep(TOGETHER_SECONDS)
            while _next(pipe, 0):
                pass
            again = _next(pipe, GRACE_SECONDS)
            self.first = self.first or number
            if again is None:
                say_stopped()
            if again != CLOSED:
                self.end_at_once()
        os.close(pipe)


def run_heeding_signals(load: Callable[[], Callable[[], None]]) -> None:
    """Run what is loaded; told to end, it ends with one line and the exit code of the signal."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        load()()
        return
    with signals.heeded():
        try:
            command = load()
            signals.at_once = False
            command()
        except BaseException as error:
            if signals.first is None or (isinstance(error, SystemExit) and error.code in (None, 0, INTERRUPTED)):
                raise
            if not isinstance(error, SystemExit):  # any error may come of an interrupt, such as one in an import
                say_stopped()
            sys.exit(signals.exit_code)
        finally:
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # what Python does at its end has no handler
                atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)


def say_stopped() -> None:
    """Print that the command was told to end."""
    with suppress(OSError, ValueError):
        sys.stderr.write("fedsim: error: stopped\n")  # all that prints otherwise may not be imported yet
        sys.stderr.flush()


def _next(pipe: int, seconds: float | None) -> int | None:
    """Wait for the next of the signals; return None if none comes, and `CLOSED` if none can."""
    while select.select([pipe], [], [], seconds)[0]:
        if not (data := os.read(pipe, 1)):
            return CLOSED
        if data[0] in SIGNALS:
            return data[0]
    return None
