"""What the user sees while runs go on: a bar with an estimate on a terminal, else one line per round."""

import logging
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fedsim.rounds import RoundSummary


class Progress:
    """Shows the rounds of one or several runs on stderr.

    Parameters
    ----------
    rounds
        Rounds of all runs together that are still to be played.
    """

    def __init__(self, rounds: int) -> None:
        self._console = Console(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=rounds)
        self._name = ""
        self._handler = RichHandler(logging.WARNING, self._console, show_path=False, show_time=False)

    def __enter__(self) -> Self:
        logger = logging.getLogger("fedsim")
        logger.addHandler(self._handler)
        logger.propagate = False  # what is shown above the bar need not be printed again
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        logger = logging.getLogger("fedsim")
        logger.removeHandler(self._handler)
        logger.propagate = True

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start(self, name: str) -> None:
        """Begin with the run of that name."""
        self._name = name
        self._bar.update(self._task, description=name)

    def advance(self, summary: RoundSummary) -> None:
        """Count a round and show what it achieved."""
        shown = f"{self._name}  {_accuracy('personalised', summary.personalised_accuracy)}"
        shown += f" {_accuracy('global', summary.global_accuracy)}"
        if not self._console.is_terminal:
            self.say(f"{shown}  round {summary.server_round}")
        self._bar.update(self._task, advance=1, description=shown)


def _accuracy(name: str, value: float | None) -> str:
    return f"{name} {value:6.1%}" if value is not None else ""
