"""Bars whose count and time left have room on any terminal: names are shortened, and values left out."""

from collections.abc import Callable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

BAR, NARROW_BAR, GAP = 30, 8, 1
WIDE = 120  # letters of a terminal with a wide bar, and the time elapsed
ELAPSED = 8
LEFT = len("left 0:00:00")
LEAST_NAME = 12  # letters that are left of a name before values are left out
ELLIPSIS = "…"
SPEED_SECONDS = 24 * 3600.0  # a round may take longer than the half minute that the library looks back


def bars_on(console: Console, *, disable: bool = False) -> Progress:
    """Return bars whose tasks have, besides a name, ``values`` in the order of their importance."""
    bars = Progress(
        _Description(console, lambda: bars.tasks),
        _Bar(console),
        MofNCompleteColumn(),
        _Times(console),
        console=console,
        disable=disable,
        speed_estimate_period=SPEED_SECONDS,
    )
    return bars


class _Description(ProgressColumn):
    def __init__(self, console: Console, tasks: Callable[[], Sequence[Task]]) -> None:
        super().__init__()
        self._console, self._tasks = console, tasks

    def render(self, task: Task) -> Text:
        count = max(2 * len(str(int(each.total or 0))) + 1 for each in self._tasks())
        others = [_bar_width(self._console), count, LEFT + (ELAPSED + GAP if _is_wide(self._console) else 0)]
        room = self._console.width - sum(others) - GAP * len(others)
        return Text(description(task.description, task.fields["values"], room), no_wrap=True)


class _Bar(BarColumn):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> ProgressBar:
        self.bar_width = _bar_width(self._console)
        return super().render(task)


class _Times(TimeRemainingColumn):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Text:
        left = Text("left ", no_wrap=True) + super().render(task)
        if not _is_wide(self._console):
            return left
        minutes, seconds = divmod(int(task.elapsed or 0), 60)
        return Text(f"{minutes // 60}:{minutes % 60:02}:{seconds:02}".ljust(ELAPSED + GAP), no_wrap=True) + left


def _is_wide(console: Console) -> bool:
    return console.width >= WIDE


def _bar_width(console: Console) -> int:
    return BAR if _is_wide(console) else NARROW_BAR


def description(name: str, values: Sequence[str], room: int) -> str:
    """Return a name and as many of its values as fit; a long name is cut in the middle, and a value never."""
    shown: list[str] = []
    left = room - min(cell_len(name), LEAST_NAME)
    for value in values:
        left -= cell_len(value) + (1 if shown else 2)
        if left < 0:
            break
        shown.append(value)
    text = "  ".join([""] * bool(shown) + [" ".join(shown)])
    return _shortened(name, room - cell_len(text)) + text


def _shortened(name: str, room: int) -> str:
    if cell_len(name) <= room:
        return name
    if room <= 1:
        return ""
    # Names often differ at their ends: in the options of the strategy, and the seed.
    end = (room - 1) * 2 // 3
    return set_cell_size(name, room - 1 - end) + ELLIPSIS + set_cell_size(name[::-1], end)[::-1]
