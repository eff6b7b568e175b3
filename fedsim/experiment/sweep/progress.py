"""What the user sees during runs: bars with an estimate on a terminal, else one line per round."""

import logging
import math
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from rich.progress import TaskID

from fedsim.console import PlainConsole
from fedsim.experiment.rounds import RoundSummary
from fedsim.experiment.sweep.bars import bars_on
from fedsim.results.report.comparing.units import format_missing, how_many
from fedsim.shortening import one_line, printable
from fedsim.training.metrics import MAIN, format_metric


@dataclass(frozen=True)
class Others:
    """Runs that are not shown and are counted: those after tuning while it runs, and tuning's afterwards.

    Parameters
    ----------
    runs, rounds
        Number of these runs, and of their rounds.
    done
        Whether they are done.
    """

    runs: int = 0
    rounds: int = 0
    done: bool = False


NO_OTHERS = Others()


class Progress:
    """Shows the rounds of one or several runs on stderr: a bar for each that is running, and one for all together.

    Parameters
    ----------
    runs
        Number of runs.
    rounds
        Number of rounds left, of all runs together.
    others
        Runs that the bar for all together counts too.
    quiet
        Whether only warnings and errors are shown.
    """

    def __init__(self, runs: int, rounds: int, others: Others = NO_OTHERS, *, quiet: bool = False) -> None:
        self._console, self._quiet = _console(), quiet
        self._shows_bars = (self._console.is_terminal or self._console.is_jupyter) and not quiet
        self._bars = bars_on(self._console, disable=not self._shows_bars)
        total, every = rounds + others.rounds, runs + others.runs
        done = others.rounds if others.done else 0
        self._total = self._bars.add_task(f"{every} runs", total=total, completed=done, visible=every > 1, values=())
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
        if not self._quiet:
            self._print(*lines)

    def log(self, name: str, level: int, message: str) -> None:
        """Print what the run of that name logged above the bars."""
        line = f"{logging.getLevelName(level)} {name}: {message}"
        self._print(*line.split("\n") if "\n" in message else [one_line(line)])

    def _print(self, *lines: str) -> None:
        for line in lines:
            self._console.print(line, soft_wrap=True)

    def start(self, name: str, rounds: int) -> None:
        """Begin with the run of that name, which has that many rounds left."""
        self._tasks[name] = self._bars.add_task(printable(name), total=rounds, values=())

    def advance(self, name: str, summary: RoundSummary) -> None:
        """Count a round of a run and show what it achieved."""
        values = _values(summary)
        if not self._shows_bars:
            self.say(f"{name}  {' '.join(values)}  round {summary.server_round}")
        rounds = 1
        if summary.stopped:
            self.say(f"{name}: stopped after round {summary.server_round}: {summary.stopped}")
            rounds += self._rounds_left(name) - 1
        self._bars.update(self._tasks[name], advance=1, values=tuple(map(printable, values)))
        self._bars.update(self._total, advance=rounds)

    def _rounds_left(self, name: str) -> int:
        [task] = [task for task in self._bars.tasks if task.id == self._tasks[name]]
        return int((task.total or 0) - task.completed)

    def end(self, name: str) -> None:
        """Take the bar of a run away; rounds that it did not run, as it failed, are not waited for."""
        [total] = [task.total or 0 for task in self._bars.tasks if task.id == self._total]
        self._bars.update(self._total, total=total - self._rounds_left(name))
        self._bars.remove_task(self._tasks.pop(name))


def _console() -> PlainConsole:
    """Return stderr; a notebook shows bars where it has ipywidgets, else lines."""
    console = PlainConsole(stderr=True)
    if console.is_jupyter and not find_spec("ipywidgets"):
        return PlainConsole(stderr=True, force_jupyter=False, force_terminal=False)
    return console


def _values(summary: RoundSummary) -> list[str]:
    """Return what a round achieved, the most important first."""
    write = partial(_value, summary.metric)
    own = write("personalised", summary.personalised_accuracy)
    faults = how_many(summary.faults, "fault") if summary.faults else ""
    values = [
        f"{own}{format_missing(summary.missing)}" if own else "",
        write("global", summary.global_accuracy),
        faults,
    ]
    return [value for value in values if value]


def _value(metric: str, name: str, value: float | None) -> str:
    if value is None:
        return ""
    name = name if metric == MAIN else f"{name} {metric}"
    return f"{name} missing" if math.isnan(value) else f"{name} {format_metric(metric, value):>6}"
