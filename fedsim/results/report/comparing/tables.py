"""The comparison as a table, for the terminal, a page and files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from fedsim.results.faults import describe_faults
from fedsim.results.report.comparing.column_names import ALL, columns_called
from fedsim.results.report.comparing.columns import SECOND, Column, Kind
from fedsim.results.report.comparing.costs import untimed
from fedsim.results.report.comparing.question import Question
from fedsim.results.report.comparing.rows import Comparison
from fedsim.results.report.comparing.small_clients import FEW_EXAMPLES
from fedsim.results.report.comparing.statistics import Tally, Value
from fedsim.results.report.comparing.units import format_bytes, format_count, format_missing, how_many
from fedsim.shortening import printable

UNKNOWN = "-"
INTERPOLATED, FEW = "~", "*"
# Amounts are shown without their interval; a file of values has it.
WITH_INTERVAL: tuple[Kind, ...] = ("score", "difference", "index")


@dataclass(frozen=True)
class Table:
    """Headings and cells as text.

    Parameters
    ----------
    numeric
        Which columns are aligned to the right.
    notes
        What must be said with it, a line each.
    priorities
        Which columns a narrow terminal shows, the lowest first; without them it shows all, in several tables.
    """

    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    priorities: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Let each text be one line without control characters, wherever the table is shown."""
        object.__setattr__(self, "headings", tuple(map(printable, self.headings)))
        object.__setattr__(self, "rows", tuple(tuple(map(printable, row)) for row in self.rows))
        object.__setattr__(self, "notes", tuple(map(printable, self.notes)))


def frame_of(lines: Iterable[Sequence[str]]) -> pd.DataFrame:
    """Return lines of text, headings first, as a table: columns of numbers, NaN where empty, if no cell is a text."""
    names, *rows = lines
    return pd.DataFrame({name: _numbers(texts) for name, texts in zip(names, zip(*rows, strict=True), strict=True)})


def _numbers(texts: Sequence[str]) -> Sequence[str | float]:
    try:
        return [float(text or "nan") for text in texts]
    except ValueError:
        return texts


def chosen_columns(comparison: Comparison, wanted: str | None = None) -> list[Column]:
    """Return the columns of some names, with commas between them, ``all``, or the compact ones if not given.

    Raises
    ------
    ConfigError
        If there is no such column.
    """
    if wanted is None:
        return [column for column in comparison.columns if column.compact]
    if wanted == ALL:
        return list(comparison.columns)
    return columns_called(comparison, wanted)


def comparison_table(comparison: Comparison, columns: Sequence[Column] | None = None) -> Table:
    """Write a comparison as text: shares and accuracies in percent, losses per example.

    A mean over several seeds has the half-width of its 95 % interval behind it, and a number from which values are
    missing says how many.
    """
    columns = chosen_columns(comparison) if columns is None else columns
    settings = tuple(comparison.rows[0].group.settings)
    cells = tuple(
        (
            row.group.label,
            *(str(row.group.settings[key]) for key in settings),
            str(row.group.seeds),
            *(_cell(row.values[column.key], column.kind, comparison.question) for column in columns),
        )
        for row in comparison.rows
    )
    headings = ("strategy", *settings, "seeds", *(column.heading for column in columns))
    numeric = (*[False] * (1 + len(settings)), *[True] * (1 + len(columns)))
    priorities = (*[0] * (1 + len(settings)), SECOND, *(column.priority for column in columns))
    notes = (*notes_of(comparison), *_notes_of_columns(comparison, columns))
    return Table(headings, numeric, cells, notes, priorities)


def _notes_of_columns(comparison: Comparison, columns: Sequence[Column]) -> Iterator[str]:
    yield from dict.fromkeys(column.note for column in columns if column.note)
    shown = [row.values[column.key] for row in comparison.rows for column in columns]
    if any(value.interpolated and value.is_known for value in shown):
        yield f"{INTERPOLATED}: interpolated between two evaluated rounds"
    if any(isinstance(value, Tally) and value.few for value in shown):
        yield f"{FEW}: some of these clients have fewer than {FEW_EXAMPLES} test examples"


def notes_of(comparison: Comparison) -> Iterator[str]:
    """Yield, by row, how many updates were left out and why, other faults, and what of the values is not known."""
    question = comparison.question
    for row in comparison.rows:
        members = row.group.members
        faults = pd.concat([result.faults for result in members])
        texts = describe_faults(faults, sum(result.updates for result in members))
        if not all(map(question.round_of, members)):
            texts.append(f"no best round: none has a validation {question.metric} of every client")
        if lost := sum(len(untimed(result)) for result in members):
            texts.append(f"no seconds: timing.jsonl lacks {how_many(lost, 'round')}, lost to a kill or to damage")
        yield from (f"{row.group.name}: {text}" if len(comparison.rows) > 1 else text for text in texts)


def _cell(value: Value, kind: Kind, question: Question) -> str:
    missing = format_missing(value.missing)
    if not value.is_known:
        return f"{UNKNOWN}{missing}"
    if isinstance(value, Tally):
        return f"{value.better} / {value.equal} / {value.worse}{FEW * (value.few > 0)}{missing}"
    write = writer_of(kind, question)
    text = write(value.mean)
    if value.interpolated:
        text = f"{INTERPOLATED}{text}"
    if kind == "difference":
        text = signed(text)
    if kind in WITH_INTERVAL and value.has_width:
        text += f" ± {write(value.half_width)}"
    return f"{text}{missing}"


def writer_of(kind: Kind, question: Question) -> Callable[[float], str]:
    """Return how a value of a measure is written."""
    match kind:
        case "score" | "difference":
            return _percent if question.is_share else _thousandths
        case "index" | "clients":
            return _thousandths
        case "bytes":
            return format_bytes
        case "count":
            return format_count
        case "seconds":
            return _tenths
        case "p":
            return format_p


def format_p(value: float) -> str:
    """Return a p-value as text."""
    return "< 0.001" if value < 0.001 else _thousandths(value)


def signed(text: str) -> str:
    """Return a difference as text with its sign; one that is rounded to 0 has a plus."""
    return text if text.startswith("-") and text.strip("-0.") else f"+{text.removeprefix('-')}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _thousandths(value: float) -> str:
    return f"{value:.3f}"


def _tenths(value: float) -> str:
    return f"{value:.1f}"
