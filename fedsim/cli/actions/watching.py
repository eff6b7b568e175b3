"""``fedsim status`` and ``fedsim watch``: how far runs are."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.text import Text

from fedsim.cli.curves import SHOWN, draw
from fedsim.cli.signals import INTERRUPTED
from fedsim.cli.streams import is_read
from fedsim.cli.terminal import print_lines, print_table
from fedsim.console import PlainConsole
from fedsim.errors import ConfigError
from fedsim.results.curves import Curves
from fedsim.results.folder import RunFolder
from fedsim.results.report.comparing.tables import UNKNOWN, Table
from fedsim.results.report.comparing.units import format_duration, format_missing
from fedsim.results.status import State, Status, run_folders, status_of
from fedsim.shortening import printable
from fedsim.training.metrics import format_metric, label

FORMAT = 1  # of the JSON object; a key may be added without another number
STATES: tuple[State, ...] = ("done", "running", "stopped", "failed", "damaged")
EVERY_SECONDS = 1.0
LINES = 33  # of the picture without a terminal


def show_status(paths: Sequence[Path], *, as_json: bool = False) -> None:
    """Print a row for each run, or a JSON object."""
    found = [status_of(folder) for folder in run_folders(list(paths))]
    if as_json:
        print_lines(json.dumps({"format": FORMAT, "runs": [asdict(each) for each in found]}))
        return
    counts = Counter(each.state for each in found)
    common = Path(os.path.commonpath([Path(each.run).parent for each in found]))
    runs = f"{len(found)} run{'s' * (len(found) > 1)} in {common}"
    print_lines(f"{runs}: {', '.join(f'{counts[state]} {state}' for state in STATES if counts[state])}")
    print_table(_table(found, common), more="--json")


def _table(found: Sequence[Status], common: Path) -> Table:
    known = {each.metric for each in found if each.metric}
    heading = f"personalised {label(next(iter(known)))}" if len(known) == 1 else "personalised"
    varied = list(_varied(found))
    has_times = any(each.seconds_left is not None for each in found)
    rows = tuple(
        (
            each.strategy or UNKNOWN,
            *(str(each.settings.get(key, UNKNOWN)) for key in varied),
            str(Path(each.run).relative_to(common)),
            UNKNOWN if each.seed is None else str(each.seed),
            each.state,
            f"{each.round}/{each.rounds or UNKNOWN}",
            *([UNKNOWN if each.seconds_left is None else format_duration(each.seconds_left)] * has_times),
            _value(each, named=len(known) > 1),
        )
        for each in found
    )
    headings = ("strategy", *varied, "run", "seed", "state", "round", *["time left"] * has_times, heading)
    numeric = (*[False] * (2 + len(varied)), *[True] * (4 + has_times))
    notes = tuple(f"{each.run}: {each.reason}" for each in found if each.reason)
    return Table(headings, numeric, rows, notes, (*[0] * (1 + len(varied)), 3, 5, 1, 1, *[4] * has_times, 2))


def _varied(found: Sequence[Status]) -> Iterator[str]:
    """Yield the settings in which runs differ, of the strategy's those that its name does not tell, and no rounds."""
    names = {each.strategy for each in found}
    for key in dict.fromkeys(key for each in found for key in each.settings if key != "rounds"):
        values = {(key.startswith("strategy.") and each.strategy, str(each.settings.get(key))) for each in found}
        if len(values) > (len(names) if key.startswith("strategy.") else 1):
            yield key


def _value(status: Status, *, named: bool = True) -> str:
    if status.metric is None or status.value is None:
        return UNKNOWN
    value = format_metric(status.metric, status.value) + format_missing(status.missing)
    return f"{label(status.metric)} {value}" if named else value


def watch(path: Path) -> bool:
    """Show a run's curves until it ends; return whether it has not failed."""
    folder = _chosen(path)
    curves, console = Curves(folder), PlainConsole()
    try:
        status = _until_it_ends(folder, curves, console)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    return status.state not in ("failed", "damaged")


def _until_it_ends(folder: RunFolder, curves: Curves, console: PlainConsole) -> Status:
    if not console.is_terminal:
        status = _follow(folder, curves)
        console.print(_picture(status, curves, console))
        return status
    status = _updated(folder, curves)
    with Live(_picture(status, curves, console), console=console, auto_refresh=False) as live:
        while status.state == "running":
            time.sleep(EVERY_SECONDS)
            status = _updated(folder, curves)
            live.update(_picture(status, curves, console), refresh=True)
    return status


def _follow(folder: RunFolder, curves: Curves) -> Status:
    """Print a line for each round while a run is running and somebody reads them."""
    seen = (status := _updated(folder, curves)).round
    while status.state == "running" and is_read():
        time.sleep(EVERY_SECONDS)
        status = _updated(folder, curves)
        if status.round > seen:
            print_lines(_line(status))
            sys.stdout.flush()
            seen = status.round
    return status


def _updated(folder: RunFolder, curves: Curves) -> Status:
    status = status_of(folder)  # before the curves: what ends meanwhile is read in full the next time
    curves.update()
    return status


def _chosen(path: Path) -> RunFolder:
    """Return the run at a path, or the only one that is running.

    Raises
    ------
    ConfigError
        If there are several.
    """
    folders = run_folders([path])
    running = [folder for folder in folders if status_of(folder).state == "running"]
    for few in (folders, running):
        if len(few) == 1:
            return few[0]
    which = f"{len(running)} that are running" if running else f"{len(folders)} runs"
    raise ConfigError(f"{path} holds {which}; give one of them, such as {(running or folders)[0].path}")


def _picture(status: Status, curves: Curves, console: PlainConsole) -> Group:
    return Group(*_parts(status, curves, console))


def _parts(status: Status, curves: Curves, console: PlainConsole) -> Iterator[Text]:
    line = Text(printable(_line(status)))
    yield line
    # One line less than the terminal has, or the picture would scroll.
    height = console.height - 1 if console.is_terminal else LINES
    height -= len(line.wrap(console, console.width)) + bool(status.reason)
    charts = [chart for chart in SHOWN if any(curves.of(each) for each in chart.curves(status.metric))]
    if charts and height < 10 * len(charts):
        charts = charts[:1]
    for chart in charts:
        drawn = draw(chart, curves, status, console.width, min(18, height // len(charts)))
        yield Text.from_ansi(drawn)
    if status.reason:
        yield Text(printable(status.reason))


def _line(status: Status) -> str:
    parts = [f"{status.strategy} seed {status.seed}", status.state, f"round {status.round} of {status.rounds}"]
    if status.seconds_left is not None:
        parts.append(f"{format_duration(status.seconds_left)} left")
    if status.value is not None:
        parts.append(f"personalised {_value(status)}")
    return "  ".join(parts)
