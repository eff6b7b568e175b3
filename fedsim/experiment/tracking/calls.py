"""The calls of a run's callbacks and trackers, and what happens to their exceptions."""

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from fedsim.config import Config
from fedsim.config.custom import load_custom
from fedsim.errors import ConfigError, RunError, error_line
from fedsim.experiment.finished import FinishedRun, Round
from fedsim.experiment.rounds import RoundSummary
from fedsim.experiment.tracking.callback import ActiveRun, Callback, callback_of, name_of
from fedsim.experiment.tracking.feed import Feed, check_trackers
from fedsim.lazy import Place

BASE = Place("fedsim.experiment.tracking.callback", "Callback")
logger = logging.getLogger(__name__)


def custom_callbacks(config: Config) -> list[Callback]:
    """Import the callbacks that the settings name; a class is called without arguments.

    Raises
    ------
    ConfigError
        If one cannot be imported or made, or may not be called.
    """
    found: list[Callback] = []
    for name in config.callbacks:
        entry = load_custom(name, f"callbacks = [{name!r}]", BASE)
        try:
            found.append(callback_of(entry() if isinstance(entry, type) else entry))
        except (ConfigError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise ConfigError(
                f"callbacks = [{name!r}] cannot be made without arguments: {error_line(error)}"
            ) from error
    return found


def check_calls(config: Config) -> None:
    """Check that all that is called while a run runs is there, before anything is written.

    Raises
    ------
    ConfigError
        If a tracker is not installed, or a callback of the settings cannot be made.
    """
    check_trackers(config)
    custom_callbacks(config)


def why_only_here(callbacks: Sequence[Callback]) -> str:
    """Return why callbacks cannot be sent to another process; empty if they can."""
    for callback in callbacks:
        try:
            sent = pickle.dumps(callback)
        except Exception as error:  # of any kind, by the user's code
            return f"callback {name_of(callback)} cannot be sent to another process: {error_line(error)}"
        if b"__main__" in sent:  # which other processes do not run
            return f"callback {name_of(callback)} is defined in the script or notebook, not in a module"
    return ""


class Calls:
    """Calls all callbacks of a run in their order, after the trackers have been fed."""

    def __init__(self, run: ActiveRun, callbacks: Sequence[Callback]) -> None:
        self._run, self._callbacks = run, callbacks
        self._feed = Feed(run)

    def __enter__(self) -> Self:
        for callback in self._callbacks:
            with _in_code_of(callback, "on_run_start"):
                callback.on_run_start(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._feed.close()

    def after(self, show: Callable[[RoundSummary], None]) -> Callable[[RoundSummary], None]:
        """Return what is called after each round: it shows the round first."""

        def call(summary: RoundSummary) -> None:
            show(summary)
            self._feed.send()
            for callback in self._callbacks:
                with _in_code_of(callback, f"on_round, round {summary.server_round}"):
                    callback.on_round(self._run, round_of(self._run.name, summary))

        return call

    def end(self, read: Callable[[], FinishedRun]) -> None:
        """Hand on the results of the complete run."""
        if not (self._feed.is_wanted or self._callbacks):
            return
        result = read()
        self._feed.end(result)
        for callback in self._callbacks:
            with _in_code_of(callback, "on_run_end"):
                callback.on_run_end(result)


def round_of(name: str, summary: RoundSummary) -> Round:
    """Return a round of the run of this name as users see it."""
    accuracies = summary.personalised_accuracy, summary.global_accuracy
    return Round(name, summary.server_round, *accuracies, summary.missing)


@contextmanager
def _in_code_of(callback: Callback, where: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        logger.info("callback %s failed", name_of(callback), exc_info=True)
        raise RunError(
            f"callback {name_of(callback)} failed in {where}: {error_line(error)}; fix it and rerun the same "
            "command to resume from the last completed round"
        ) from error
