"""Callbacks: what is called at the start of a run, after each round, and at the end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.config import Config
from fedsim.config.toml import flat
from fedsim.experiment.finished import FinishedRun, Round

OnRound = Callable[["ActiveRun", Round], None]


@dataclass(frozen=True)
class ActiveRun:
    """A run that is under way.

    Parameters
    ----------
    name
        Name that the terminal shows, unique in the experiment.
    experiment
        Name of the experiment, which groups its runs.
    path
        Folder of the run, with the records up to the last round.
    config
        Resolved settings.
    done
        Number of rounds that it had when this process started or resumed it.
    """

    name: str
    experiment: str
    path: Path
    config: Config
    done: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by dotted name, without those that say what to do with the results."""
        return flat(self.config.model_dump(mode="json", exclude={"sweep", "tune", "expect", "track", "callbacks"}))


class Callback:
    """Base of callbacks. Override what you need; nothing that a callback does changes a number of the run."""

    def on_run_start(self, run: ActiveRun) -> None:
        """Begin: the run is about to start, or to resume."""

    def on_round(self, run: ActiveRun, summary: Round) -> None:
        """Take the summary of a round, whose records are on the disk."""

    def on_run_end(self, result: FinishedRun) -> None:
        """Take the results of a complete run, with its page."""


@dataclass(frozen=True)
class _OfFunction(Callback):
    function: OnRound

    def on_round(self, run: ActiveRun, summary: Round) -> None:
        self.function(run, summary)


def callback_of(entry: Callback | OnRound) -> Callback:
    """Return a callback as it is, and one that calls a function after each round.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if isinstance(entry, Callback):
        return entry
    if isinstance(entry, type) or not callable(entry):
        what = f"the class {entry.__name__}; give an object of it" if isinstance(entry, type) else repr(entry)
        raise TypeError(f"must hold objects of fedsim.Callback or functions of a run and a round, and holds {what}")
    return _OfFunction(entry)


def name_of(callback: Callback) -> str:
    """Return what messages call a callback."""
    if isinstance(callback, _OfFunction):
        return str(getattr(callback.function, "__qualname__", callback.function))
    return type(callback).__qualname__
