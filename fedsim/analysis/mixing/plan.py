"""The results that must be computed for a set of mixed models, each of them once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fedsim.analysis.mixing.mixes import Recipe, Source
from fedsim.models.graph import Operation

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Blend(NamedTuple):
    """``(1 - t) * first + t * second`` of two results, by their positions."""

    first: int
    second: int
    t: float


@dataclass(frozen=True)
class Results:
    """The distinct results of one operation.

    Parameters
    ----------
    sources
        Source of each of the operation's parts, for each result; shape [results, parts].
    inputs
        Result that is taken of each input, for each result; shape [results, inputs].
    blends
        Further results of an affine operation, each mixed from two of those for which it is run.
    last_use
        Position of the last operation that takes these results.
    """

    sources: Ints
    inputs: Ints
    blends: tuple[Blend, ...]
    last_use: int

    @property
    def computed(self) -> int:
        """Number of results for which the operation is run."""
        return len(self.inputs)


@dataclass(frozen=True)
class Plan:
    """How to compute the outputs of mixed models.

    Parameters
    ----------
    sources
        The distinct sources.
    results
        Results of each operation.
    outputs
        Position of each recipe's output among the results of the last operation, shape [recipes].
    """

    sources: tuple[Source, ...]
    results: tuple[Results, ...]
    outputs: Ints

    def total(self, flops: Sequence[float]) -> float:
        """Return the cost of all results, given that of each operation."""
        return sum(each * results.computed for each, results in zip(flops, self.results, strict=True))

    def peak_size(self, operations: Sequence[Operation]) -> float:
        """Return the most bytes per example of results that are kept at once."""
        peak, kept = 0.0, 0.0
        freed = [0.0] * (len(operations) + 1)
        for i, (each, results) in enumerate(zip(operations, self.results, strict=True)):
            size = each.finished_size * (results.computed + len(results.blends))
            kept += size
            # What is mixed is kept as it is before the tail.
            peak = max(peak, kept + (each.size * results.computed if results.blends and each.tail else 0.0))
            freed[results.last_use] += size
            kept -= freed[i]
        return peak


def make_plan(operations: Sequence[Operation], recipes: Sequence[Recipe]) -> Plan:
    """Find the distinct results that the outputs of ``recipes`` need."""
    numbers: dict[Source, int] = {}
    # First the states themselves, of which a mix is made.
    for recipe in recipes:
        for source in recipe:
            for end in source[:2] if isinstance(source, tuple) else (source,):
                numbers.setdefault(end, len(numbers))
    codes = np.array([[numbers.setdefault(source, len(numbers)) for source in recipe] for recipe in recipes])
    sources = tuple(numbers)
    last_use = _last_uses(operations)
    chosen: list[Ints] = [np.zeros(len(recipes), dtype=np.int64)]
    every = [Results(np.zeros((1, 0), np.int64), np.zeros((1, 0), np.int64), (), last_use[0])]
    for i, each in enumerate(operations[1:], 1):
        columns = [codes[:, part] for part in each.parts] + [chosen[k] for k in each.inputs]
        rows, of_recipe = _distinct(columns, len(recipes))
        own, inputs = rows[:, : len(each.parts)], rows[:, len(each.parts) :]
        if each.affine:
            own, inputs, blends, place = _linear(own, inputs, sources, numbers)
            of_recipe = place[of_recipe]
        else:
            blends = ()
        every.append(Results(own, inputs, blends, last_use[i]))
        chosen.append(of_recipe)
    return Plan(sources, tuple(every), chosen[-1])


def _last_uses(operations: Sequence[Operation]) -> list[int]:
    last = [len(operations)] * len(operations)
    for i, each in enumerate(operations):
        for k in each.inputs:
            last[k] = i  # overwritten by each later use
    return last


def _distinct(columns: Sequence[Ints], rows: int) -> tuple[Ints, Ints]:
    """Return the distinct rows of a table given by its columns, and for each row which of them it is."""
    key = np.zeros(rows, dtype=np.int64)
    for column in columns:
        _, key = np.unique(key * (int(column.max()) + 1) + column, return_inverse=True)
    _, first = np.unique(key, return_index=True)
    return np.stack([column[first] for column in columns], axis=1) if columns else np.zeros((1, 0), np.int64), key


def _linear(
    own: Ints, inputs: Ints, sources: Sequence[Source], numbers: dict[Source, int]
) -> tuple[Ints, Ints, tuple[Blend, ...], Ints]:
    """Replace mixes of weights by blends of results wherever that needs no more results.

    Returns
    -------
    own, inputs, blends
        As in `Results`.
    place
        New position of each of the given rows.
    """
    computed: dict[tuple[int, tuple[int, ...]], int] = {}
    pending: dict[tuple[int, ...], list[int]] = {}
    place = np.zeros(len(own), dtype=np.int64)
    for row, ((code,), taken) in enumerate(zip(own.tolist(), map(tuple, inputs.tolist()), strict=True)):
        if isinstance(sources[code], int):
            place[row] = computed.setdefault((code, taken), len(computed))
        else:
            pending.setdefault(taken, []).append(row)
    blended: dict[int, Blend] = {}
    for taken, rows in pending.items():
        ends = {}
        for row in rows:
            start, end, t = sources[own[row, 0]]
            ends[row] = ((numbers[start], taken), (numbers[end], taken), t)
        missing = {key for start, end, _ in ends.values() for key in (start, end) if key not in computed}
        if len(missing) > len(rows):
            for row in rows:
                place[row] = computed.setdefault((int(own[row, 0]), taken), len(computed))
            continue
        for key in sorted(missing):
            computed.setdefault(key, len(computed))
        blended |= {row: Blend(computed[start], computed[end], t) for row, (start, end, t) in ends.items()}
    place[list(blended)] = len(computed) + np.arange(len(blended))
    keys = list(computed)
    return (
        np.array([[code] for code, _ in keys], dtype=np.int64),
        np.array([taken for _, taken in keys], dtype=np.int64),
        tuple(blended.values()),
        place,
    )
