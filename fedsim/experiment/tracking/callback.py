"""Callbacks: what is called at the start of a run, after each round, and at the end."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from fedsim.config import Config
from fedsim.config.toml import flat
from fedsim.errors import ConfigError
from fedsim.experiment.finished import FinishedRun, Round
from fedsim.training.overrides import check_overrides, takes

HOOKS = ("on_run_start", "on_round", "on_run_end")
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

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        check_overrides(cls, Callback, HOOKS)

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
    ConfigError
        If it is neither, or a function of other arguments.
    """
    if isinstance(entry, Callback):
        return entry
    if isinstance(entry, type):
        found = f"the class {entry.__name__}; give an object of it"
    elif not callable(entry):
        found = repr(entry)
    elif not takes(entry, 2):
        found = f"{name_of(_OfFunction(entry))}{signature(entry)}"
    else:
        return _OfFunction(entry)
    raise ConfigError(f"callbacks must hold objects of fedsim.Callback or functions of a run and a round, not {found}")


def name_of(callback: Callback) -> str:
    """Return what messages call a callback."""
    if isinstance(callback, _OfFunction):
        return str(getattr(callback.function, "__qualname__", callback.function))
    return type(callback).__qualname__
