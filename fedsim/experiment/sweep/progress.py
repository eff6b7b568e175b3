"""What the user sees during runs: bars with an estimate on a terminal, else one line per round."""

import logging
import math
from functools import partial
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fedsim.console import PlainConsole
from fedsim.experiment.rounds import RoundSummary
from fedsim.results.report.comparing.units import format_missing
from fedsim.shortening import one_line, printable
from fedsim.training.metrics import MAIN, format_metric


class Progress:
    """Shows the rounds of one or several runs on stderr: a bar for each that is running, and one for all together.

    Parameters
    ----------
    runs
        Number of runs.
    rounds
        Number of rounds left, of all runs together.
    """

    def __init__(self, runs: int, rounds: int) -> None:
        self._console = _console()
        self._shows_bars = self._console.is_terminal or self._console.is_jupyter
        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._shows_bars,
        )
        self._total = self._bars.add_task(f"{runs} runs", total=rounds, visible=runs > 1)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, *lines: str) -> None:
        """Print lines above the bars."""
        for line in lines:
            self._console.print(line, soft_wrap=True)

    def log(self, name: str, level: int, message: str) -> None:
        """Print what the run of that name logged above the bars."""
        line = f"{logging.getLevelName(level)} {name}: {message}"
        self.say(*line.split("\n") if "\n" in message else [one_line(line)])

    def start(self, name: str, rounds: int) -> None:
        """Begin with the run of that name, which has that many rounds left."""
        self._tasks[name] = self._bars.add_task(printable(name), total=rounds)

    def advance(self, name: str, summary: RoundSummary) -> None:
        """Count a round of a run and show what it achieved."""
        write = partial(_value, summary.metric)
        shown = f"{name}  {write('personalised', summary.personalised_accuracy)}{format_missing(summary.missing)}"
        shown += f" {write('global', summary.global_accuracy)}"
        if summary.faults:
            shown += f" {summary.faults} {'fault' if summary.faults == 1 else 'faults'}"
        if not self._shows_bars:
            self.say(f"{shown}  round {summary.server_round}")
        rounds = 1
        if summary.stopped:
            self.say(f"{name}: stopped after round {summary.server_round}: {summary.stopped}")
            rounds += self._rounds_left(name) - 1
        self._bars.update(self._tasks[name], advance=1, description=printable(shown))
        self._bars.update(self._total, advance=rounds)

    def _rounds_left(self, name: str) -> int:
        [task] = [task for task in self._bars.tasks if task.id == self._tasks[name]]
        return int((task.total or 0) - task.completed)

    def end(self, name: str) -> None:
        """Take the bar of a run away."""
        self._bars.remove_task(self._tasks.pop(name))


def _console() -> PlainConsole:
    """Return stderr; a notebook shows bars where it has ipywidgets, else lines."""
    console = PlainConsole(stderr=True)
    if console.is_jupyter and not find_spec("ipywidgets"):
        return PlainConsole(stderr=True, force_jupyter=False, force_terminal=False)
    return console


def _value(metric: str, name: str, value: float | None) -> str:
    if value is None:
        return ""
    name = name if metric == MAIN else f"{name} {metric}"
    return f"{name} missing" if math.isnan(value) else f"{name} {format_metric(metric, value):>6}"
