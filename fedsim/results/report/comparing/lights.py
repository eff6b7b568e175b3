"""What weakens the answer of a comparison, each as a line with the remedy."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedsim.results.report.comparing.comparable import left_out_text, name_unfinished
from fedsim.results.report.comparing.rows import Comparison
from fedsim.results.unfinished import is_finished

FEW_SEEDS, ENOUGH_SEEDS = 3, 5


@dataclass(frozen=True)
class Light:
    """What weakens an answer, or helps to read it."""

    level: Literal["warning", "note"]
    text: str


def lights_of(comparison: Comparison) -> Iterator[Light]:
    """Yield what weakens the answer of a comparison, the most important first."""
    yield from _unfinished(comparison)
    yield from _seeds(comparison)


def _unfinished(comparison: Comparison) -> Iterator[Light]:
    results = comparison.results
    if comparison.unfinished:
        yield Light("warning", left_out_text(comparison.unfinished))
    if unfinished := [result for result in results if not is_finished(result)]:
        names = name_unfinished(unfinished)
        if len(results) == 1:
            yield Light("warning", f"unfinished: {names}; resume it with 'fedsim run'")
        else:
            shown = max(result.evaluated for result in unfinished)
            yield Light("warning", f"compared at round {shown}, the last that all runs have; unfinished: {names}")


def _seeds(comparison: Comparison) -> Iterator[Light]:
    seeds = min(row.group.seeds for row in comparison.rows)
    if seeds < FEW_SEEDS:
        text = "1 seed" if seeds == 1 else f"{seeds} seeds"
        yield Light("warning", f"{text}: run at least {ENOUGH_SEEDS} for an interval that says something")
    elif seeds < ENOUGH_SEEDS:
        yield Light("note", f"{seeds} seeds: the interval is wide; {ENOUGH_SEEDS} or more make it narrower")
