"""One measure as a table of methods by the values of settings, as a paper prints it."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedsim.config.config import WITHOUT_EFFECT
from fedsim.errors import ConfigError
from fedsim.results.report.comparing.best import MAIN_COLUMN, Standing, standing_of
from fedsim.results.report.comparing.column_names import measure_called
from fedsim.results.report.comparing.columns import Column
from fedsim.results.report.comparing.groups import Group, check_setting, label_without
from fedsim.results.report.comparing.rows import Comparison, Row
from fedsim.results.report.comparing.statistics import Interval
from fedsim.results.tuning import tuned_settings

Spread = Literal["std", "interval", "none"]
SPREADS: tuple[Spread, ...] = ("std", "interval", "none")
Key = tuple[str, ...]
# Tables whose settings belong to a method: lines that differ in them are compared with each other.
OF_METHODS = ("strategy", "local", "participation")


@dataclass(frozen=True)
class Cell:
    """A measure of a method in one setting.

    Parameters
    ----------
    std
        Standard deviation over the seeds, with n - 1 in the denominator; NaN with one seed.
    is_best
        Whether it is the best of several methods in its setting.
    is_tie
        Whether it is another one that a paired test cannot tell from the best.
    """

    value: Interval
    std: float
    seeds: int
    is_best: bool = False
    is_tie: bool = False


@dataclass(frozen=True)
class Pivot:
    """A measure of methods by the values of settings.

    Parameters
    ----------
    settings
        The settings whose values are the columns.
    apart
        Other settings in which methods differ that are not compared with each other.
    keys
        Values of the settings, a tuple for each column.
    cells
        By method and key; none where nothing was run.
    untested
        Number of cells that are neither best nor tested against it, as there are fewer than two paired seeds.
    """

    comparison: Comparison
    column: Column
    settings: Key
    apart: Key
    methods: tuple[str, ...]
    keys: tuple[Key, ...]
    cells: Mapping[tuple[str, Key], Cell]
    untested: int = 0


def pivot_of(comparison: Comparison, settings: Sequence[str] | None = None, column: str = MAIN_COLUMN) -> Pivot:
    """Return a measure of methods by the values of settings; what was tuned is part of no method's name.

    Parameters
    ----------
    settings
        Dotted settings: by default those in which the runs differ, besides the strategy, the seed and what was tuned.
    column
        Name of the measure: its key or heading.

    Raises
    ------
    ConfigError
        If no run has such a setting, or there is no such measure.
    """
    tuned = tuned_settings(comparison.results)
    varying = [key for key in comparison.rows[0].group.settings if key not in tuned]
    swept = [key for key in varying if not key.startswith("strategy.")]
    settings = tuple(swept if settings is None else dict.fromkeys(settings))
    for each in settings:
        if each in ("seed", "strategy", "strategy.name") or each.partition(".")[0] in WITHOUT_EFFECT:
            raise ConfigError(
                f"--pivot {each!r} cannot be a column: methods are the rows, seeds are averaged, and engine and "
                "checkpoints change no number; give another setting, such as partition.alpha"
            )
        check_setting(comparison.results, each, "--pivot")
    measure = measure_called(comparison, column)
    others = [key for key in varying if key not in settings]
    apart = [key for key in others if key.partition(".")[0] not in OF_METHODS]
    members: dict[tuple[str, Key], list[Group]] = {}
    blocks: dict[str, Key] = {}
    for row in comparison.rows:
        shown = row.group.members[0].shown_settings
        method = _method(row.group, settings, others)
        members.setdefault((method, _values(shown, settings)), []).append(row.group)
        blocks[method] = _values(shown, apart)
    keys = sorted(dict.fromkeys(key for _, key in members), key=lambda key: [_order(each) for each in key])
    free = {"strategy", *tuned, *settings, *others}
    cells: dict[tuple[str, Key], Cell] = {}
    untested = 0
    for key, block in itertools.product(keys, dict.fromkeys(blocks.values())):
        names = [name for name in blocks if blocks[name] == block and (name, key) in members]
        groups = [Group(name, {}, [run for each in members[name, key] for run in each.members]) for name in names]
        rows = [Row(group, {measure.key: measure.of(group)}) for group in groups]
        is_ranked = measure.higher_is_better is not None and len(rows) > 1
        standing = standing_of(rows, measure, free) if is_ranked else None
        cells |= {(row.group.label, key): _cell(row, measure, standing) for row in rows}
        untested += len(standing.untested) if standing and standing.best else 0
    return Pivot(comparison, measure, settings, tuple(apart), tuple(blocks), tuple(keys), cells, untested)


def _method(group: Group, pivoted: Sequence[str], others: Sequence[str]) -> str:
    """Return a method's label, without options that are pivoted, and with the other settings in which runs differ."""
    options = [key.split(".")[1] for key in pivoted if key.startswith("strategy.")]
    label = label_without(group.members[0], options) if options else group.label
    return ", ".join([label, *(f"{key}={group.settings[key]}" for key in others if str(group.settings[key]) != "-")])


def _values(shown: Mapping[str, Any], settings: Sequence[str]) -> Key:
    return tuple("-" if shown.get(each) is None else str(shown[each]) for each in settings)


def _cell(row: Row, column: Column, standing: Standing | None) -> Cell:
    group = row.group
    by_seed: dict[int, list[Any]] = {}
    for result in group.members:
        by_seed.setdefault(result.config.seed, []).append(result)
    values = [column.of(Group("", {}, runs)).mean for runs in by_seed.values()]
    std = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    is_best = standing is not None and standing.best is not None and standing.best.row is row
    is_tie = standing is not None and any(method.row is row for method in standing.ties)
    value = row.values[column.key]
    assert isinstance(value, Interval)
    return Cell(value, std, group.seeds, is_best, is_tie)


def _order(text: str) -> tuple[int, float, str]:
    """Let numbers come by their size, then texts, then what is not set."""
    try:
        return (0, float(text), "")
    except ValueError:
        return (2, 0.0, "") if text == "-" else (1, 0.0, text)


def lines_of(pivot: Pivot) -> Iterator[list[str]]:
    """Yield headings, and one line per cell with the full precision of its numbers."""
    question = pivot.comparison.question
    known = ("method", *pivot.settings, "column", "metric", "at", "seeds", "mean", "std", "half_width", "best", "tie")
    yield list(known)
    for (method, key), cell in pivot.cells.items():
        measured = (cell.value.mean, cell.std, cell.value.half_width)
        numbers = [repr(value) if value == value else "" for value in measured]
        marks = [str(mark).lower() for mark in (cell.is_best, cell.is_tie)]
        own = [*key, pivot.column.key, question.metric, question.at, str(cell.seeds)]
        yield [method, *own, *numbers, *marks]
