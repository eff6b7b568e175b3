"""What weakens the answer of a comparison, each as a line with the remedy."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from fedsim.results.report.comparing.best import MAIN_COLUMN, Standing
from fedsim.results.report.comparing.comparable import unfinished_texts
from fedsim.results.report.comparing.groups import METHOD
from fedsim.results.report.comparing.pairs import plain_runs, runs_of, why_no_reference
from fedsim.results.report.comparing.rows import Comparison
from fedsim.results.report.comparing.small_clients import FEW_EXAMPLES, counts_targets, few_examples, rows_shown
from fedsim.results.report.comparing.statistics import ROUNDING
from fedsim.results.report.comparing.units import how_many
from fedsim.results.result import Result
from fedsim.results.tuning import choices_for, edges_of
from fedsim.shortening import first_few

FEW_SEEDS, ENOUGH_SEEDS = 3, 5
NAMED = 4  # lines in a list


@dataclass(frozen=True)
class Light:
    """What weakens an answer, or helps to read it."""

    level: Literal["warning", "note"]
    text: str


def lights_of(comparison: Comparison, standings: Sequence[Standing]) -> Iterator[Light]:
    """Yield what weakens the answer of a comparison, the most important first."""
    yield from _unfinished(comparison)
    yield from _unpaired(comparison)
    yield from _equal_runs(comparison)
    yield from _missing(comparison)
    yield from _unlike_seeds(comparison)
    yield from _unlike_methods(comparison, standings)
    yield from _seeds(comparison, standings)
    yield from _without_spread(standings)
    yield from _lengths(standings)
    yield from _small_clients(comparison)
    yield from _tuning(comparison)
    yield from _corrections(comparison, standings)


def _unfinished(comparison: Comparison) -> Iterator[Light]:
    for text in unfinished_texts(comparison.results, comparison.unfinished):
        yield Light("warning", text)


def _unpaired(comparison: Comparison) -> Iterator[Light]:
    """Yield that a baseline, or a method that others are counted against, cannot be paired with any run."""
    question, results = comparison.question, comparison.results
    if question.baseline is not None:
        own = {id(run) for run in runs_of(question.baseline, results, question)}
        others = [row for row in comparison.rows if not own.issuperset(map(id, row.group.members))]
        if others and not any(row.values["pairs"].is_known for row in others):
            text = "no run has the partition, seed and other settings of a run of the baseline"
            yield Light("warning", f"{text} {question.baseline}, so that there is no difference to it")
        return
    for name in ("local", "full"):
        if which := why_no_reference(name, results):
            label = plain_runs(name, results)[0].strategy
            text = f"clients are not counted against {label}, of which two runs match another: {which}"
            yield Light("note", f"{text}; choose with --baseline SETTING=VALUE")


def _equal_runs(comparison: Comparison) -> Iterator[Light]:
    """Yield which runs are the same one, in several folders."""
    places: dict[str, list[Result]] = {}
    for result in comparison.results:
        places.setdefault(f"{result.setting} {result.config.seed}", []).append(result)
    equal = [
        f"{found[0].strategy} seed {found[0].config.seed} in {' and '.join(str(each.folder.path) for each in found)}"
        for found in places.values()
        if len(found) > 1
    ]
    if equal:
        yield Light("warning", f"the same run several times, whose mean counts as one seed: {_listed(equal)}")


def _missing(comparison: Comparison) -> Iterator[Light]:
    """Yield which lines lack updates in their averages, or values of clients."""
    left_out, missing = [], []
    for row in comparison.rows:
        members = row.group.members
        if count := sum(result.left_out for result in members):
            asked = sum(result.updates for result in members)
            left_out.append(f"{row.group.name} {count}{f' of {asked}' * bool(asked)}")
        if count := row.values[MAIN_COLUMN].missing:
            missing.append(f"{row.group.name} {count}")
    if left_out:
        yield Light("warning", f"updates left out of averages: {_listed(left_out)}; reasons are below the table")
    if missing:
        why = "without a finite loss or not evaluated, so that their means are of fewer clients"
        yield Light("warning", f"values of clients missing: {_listed(missing)}; {why}")


def _seeds(comparison: Comparison, standings: Sequence[Standing]) -> Iterator[Light]:
    groups = [method.row.group for standing in standings for method in standing.methods]
    seeds = min(group.seeds for group in groups)
    text = how_many(seeds, "seed")
    if seeds < FEW_SEEDS:
        yield Light("warning", f"{text}: run at least {ENOUGH_SEEDS} for a usable interval")
    elif seeds < ENOUGH_SEEDS:
        yield Light("note", f"{text}: the intervals are wide; {ENOUGH_SEEDS} or more make them narrower")
    fewer = [
        f"{method.name} {method.row.group.seeds} of {most}"
        for standing in standings
        for most in [max(each.row.group.seeds for each in standing.methods)]
        for method in standing.methods
        if method.row.group.seeds < most
    ]
    if fewer and comparison.question.by != METHOD:  # of whose methods `_unlike_methods` counts the runs
        yield Light(
            "warning", f"fewer seeds than others: {_listed(fewer)}; differences are over the seeds that both have"
        )


def _unlike_seeds(comparison: Comparison) -> Iterator[Light]:
    """Yield which lines average other settings for one seed than for another, which no interval shows."""
    unlike = []
    for row in comparison.rows:
        by_seed: dict[int, set[str]] = {}
        for result in row.group.members:
            by_seed.setdefault(result.config.seed, set()).add(result.setting)
        if any(settings != next(iter(by_seed.values())) for settings in by_seed.values()):
            unlike.append(row.group.name)
    if unlike:
        remedy = "run what is missing, or compare without --by"
        yield Light("warning", f"not every seed has the same settings: {_listed(unlike)}; {remedy}")


def _unlike_methods(comparison: Comparison, standings: Sequence[Standing]) -> Iterator[Light]:
    """Yield which methods lack a setting that others have, so that the means of their lines are of something else."""
    if comparison.question.by != METHOD:
        return
    for standing in standings:
        every = {key for method in standing.methods for key in method.runs}
        fewer = [
            f"{method.name} {len(method.runs)} of {len(every)}"
            for method in standing.methods
            if every - set(method.runs)
        ]
        if fewer:
            text = "the means of the table are not over the same settings and seeds, while differences are"
            yield Light("warning", f"{text}: runs of {_listed(fewer)}; run what is missing")


def _without_spread(standings: Sequence[Standing]) -> Iterator[Light]:
    """Yield which methods differ from the best by the same in each seed, of which a test makes a certainty."""
    names = [
        name
        for standing in standings
        for name, gain in standing.gains.items()
        if gain.seeds > 1 and gain.difference.half_width < ROUNDING <= abs(gain.difference.mean)
    ]
    if names:
        why = "few test examples can cause that, and the interval of 0 says nothing"
        yield Light("warning", f"the same difference from the best in each seed: {_listed(names)}; {why}")


def _lengths(standings: Sequence[Standing]) -> Iterator[Light]:
    for standing in standings:
        rounds = {
            method.name: sorted({result.evaluated for result in method.row.group.members})
            for method in standing.methods
        }
        if len({tuple(each) for each in rounds.values()}) > 1 or any(len(each) > 1 for each in rounds.values()):
            texts = [f"{name} {'-'.join(map(str, (each[0], each[-1])[: len(each)]))}" for name, each in rounds.items()]
            remedy = "--budget bytes or passes compares them at equal cost"
            yield Light("warning", f"runs of different numbers of rounds: {_listed(texts)}; {remedy}")
            return


def _small_clients(comparison: Comparison) -> Iterator[Light]:
    """Yield how many clients have few test examples; those of one partition are the same in all its runs."""
    first = {result.partition_name: result for result in reversed(comparison.results)}
    if any(map(counts_targets, first.values())):
        yield Light(
            "note", "examples with several labels, as sequences, are counted in labels: tiny test sets are not marked"
        )
    counts = pd.concat([few_examples(result, comparison.question) for result in first.values()])
    if counts.empty:
        return
    clients = sum(map(len, (rows_shown(result, comparison.question) for result in first.values())))
    where = f" of {len(first)} partitions" if len(first) > 1 else ""
    step = f", where one example is up to {100 / counts.min():.3g} points" if comparison.question.is_share else ""
    have = "has" if len(counts) == 1 else "have"
    text = f"{len(counts)} of the {clients} clients{where} {have} fewer than {FEW_EXAMPLES} test examples"
    yield Light("warning", f"tiny test sets: {text}, the fewest {counts.min():.0f}{step}")


def _tuning(comparison: Comparison) -> Iterator[Light]:
    """Yield which tuned values are at an edge of their grid, and whether they were chosen by what is shown."""
    choices = choices_for(comparison.results)
    found = {place: edges for place, choice in enumerate(choices) if (edges := edges_of(choice))}
    texts = [f"{choices[place].get('runs', 'tuning')}: {edge}" for place, edges in found.items() for edge in edges]
    if texts:
        count = f"in {len(found)} of {len(choices)} choices"
        yield Light("warning", f"tuned to the edge of the grid {count}: {_listed(texts)}; a wider grid may be better")
    # Choices without 'at' are of an earlier version, which chose by the best round.
    at = comparison.question.at
    if others := {own for choice in choices if (own := choice.get("at", "best")) != at}:
        yield Light("note", f"tuned by the {min(others)} round, but the {at} round is shown")
    shown = max(result.config.rounds for result in comparison.results)
    shorter = {rounds for choice in choices if isinstance(rounds := choice.get("rounds"), int) and rounds < shown}
    if shorter:
        yield Light("note", f"tuned in runs of {min(shorter)} rounds, but shown are runs of {shown}")


def _corrections(comparison: Comparison, standings: Sequence[Standing]) -> Iterator[Light]:
    tests = sum(not math.isnan(p) for standing in standings for p in standing.p.values())
    if tests > 1 and comparison.question.correct is None:
        yield Light("note", f"{tests} comparisons with the best, uncorrected for their number: --correct holm")


def _listed(texts: Sequence[str]) -> str:
    return first_few(texts, NAMED)
