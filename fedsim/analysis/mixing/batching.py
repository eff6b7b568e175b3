"""The batches in which the results of a plan are computed, so that few of them must be copied."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from torch import nn

from fedsim.analysis.mixing.plan import Plan, Results
from fedsim.models.graph import Operation


class Place(NamedTuple):
    """Where a result is: the batch of its operation, and the position among the models in it."""

    batch: int
    position: int


class Piece(NamedTuple):
    """Results that lie next to each other in a batch."""

    batch: int
    start: int
    stop: int


Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class Call:
    """One run of an operation for several models with the same weights.

    Parameters
    ----------
    sources
        Sources of the operation's parts, one each.
    arguments
        Results that it takes, for each of its inputs.
    """

    sources: tuple[int, ...]
    arguments: tuple[Pieces, ...]


@dataclass(frozen=True)
class Blending:
    """Mixes of results, as they are before the operation's tail.

    Parameters
    ----------
    firsts, seconds, ts
        ``(1 - t) * first + t * second`` for each.
    done_with
        Batches that no later blending needs.
    """

    firsts: Pieces
    seconds: Pieces
    ts: tuple[float, ...]
    done_with: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """The batches of one operation, in the order in which they are computed.

    Parameters
    ----------
    kept_before_tail
        Batches that blendings also need before the tail.
    """

    batches: tuple[Call | Blending, ...]
    kept_before_tail: frozenset[int]


def schedule(
    operations: Sequence[Operation], plan: Plan, n: int, bytes_at_a_time: int, rows: int
) -> tuple[list[Step], list[Place]]:
    """Return a step for each operation but the first, which is the input, and where the results of the last lie.

    Parameters
    ----------
    n
        Number of examples.
    bytes_at_a_time
        Upper limit for the widest input or result of a batch.
    rows
        Lower limit for the rows of a matrix product, so that its weights are read for more than a few examples.
    """
    places: list[list[Place]] = [[Place(0, 0)]]
    steps = []
    for operation, results in zip(operations[1:], plan.results[1:], strict=True):
        taken = [operations[k] for k in operation.inputs]
        widest = max([operation.size, *(each.finished_size for each in taken)])
        at_a_time = max(1, int(bytes_at_a_time // max(1.0, widest * n)))
        if operation.kind is nn.Linear:
            at_a_time = max(at_a_time, math.ceil(rows / n))
        step, place = _step(operation, results, operations, places, at_a_time)
        steps.append(step)
        places.append(place)
    return steps, places[-1]


def _step(
    operation: Operation,
    results: Results,
    operations: Sequence[Operation],
    places: Sequence[Sequence[Place]],
    at_a_time: int,
) -> tuple[Step, list[Place]]:
    place = [Place(-1, -1)] * (results.computed + len(results.blends))
    made_of: dict[int, list[int]] = {}
    for b, blend in enumerate(results.blends):
        made_of.setdefault(blend.first, []).append(b)
        made_of.setdefault(blend.second, []).append(b)
    missing = [2] * len(results.blends)
    batches: list[Call | Blending] = []
    before_tail: set[int] = set()
    for rows in _calls(operation, results, operations, places, at_a_time):
        if not made_of.keys().isdisjoint(rows):
            before_tail.add(len(batches))
        arguments = (
            _pieces([places[k][results.inputs[row, column]] for row in rows], operations[k].per_example)
            for column, k in enumerate(operation.inputs)
        )
        for position, row in enumerate(rows):
            place[row] = Place(len(batches), position)
        batches.append(Call(tuple(results.sources[rows[0]].tolist()), tuple(arguments)))
        ready = []
        for b in (b for row in rows for b in made_of.get(row, ())):
            missing[b] -= 1
            if not missing[b]:
                ready.append(b)
        for some in (ready[start : start + at_a_time] for start in range(0, len(ready), at_a_time)):
            for position, b in enumerate(some):
                place[results.computed + b] = Place(len(batches), position)
            blends = [results.blends[b] for b in some]
            batches.append(
                Blending(
                    _pieces([place[blend.first] for blend in blends], per_example=True),
                    _pieces([place[blend.second] for blend in blends], per_example=True),
                    tuple(blend.t for blend in blends),
                    (),
                )
            )
    return Step(_with_ends(batches), frozenset(before_tail)), place


def _with_ends(batches: Sequence[Call | Blending]) -> tuple[Call | Blending, ...]:
    """Return the blendings with the batches that no later one needs."""
    needed_later: set[int] = set()
    reversed_batches: list[Call | Blending] = []
    for batch in reversed(batches):
        if isinstance(batch, Blending):
            used = {piece.batch for piece in (*batch.firsts, *batch.seconds)}
            batch = Blending(batch.firsts, batch.seconds, batch.ts, tuple(sorted(used - needed_later)))
            needed_later |= used
        reversed_batches.append(batch)
    return tuple(reversed(reversed_batches))


def _calls(
    operation: Operation,
    results: Results,
    operations: Sequence[Operation],
    places: Sequence[Sequence[Place]],
    at_a_time: int,
) -> Iterator[list[int]]:
    """Yield the results that are computed together: those with the same weights, in the order in which inputs lie."""
    if not operation.stackable:
        yield from ([row] for row in range(results.computed))
        return
    single = [column for column, k in enumerate(operation.inputs) if not operations[k].per_example]
    many = [column for column, k in enumerate(operation.inputs) if operations[k].per_example]
    widest = max(many, key=lambda column: operations[operation.inputs[column]].finished_size)

    def weights(row: int) -> tuple[int, ...]:
        return (*results.sources[row].tolist(), *results.inputs[row, single].tolist())

    def input_place(row: int) -> Place:
        return places[operation.inputs[widest]][results.inputs[row, widest]]

    ordered = sorted(range(results.computed), key=lambda row: (weights(row), input_place(row)))
    calls: list[list[int]] = []
    for _, group in groupby(ordered, key=weights):
        calls.append([])
        for row in group:
            if len(calls[-1]) == at_a_time:
                calls.append([])
            calls[-1].append(row)
    # What is made of the same inputs follows each other, so that it can be mixed soon.
    yield from sorted(calls, key=lambda rows: (input_place(rows[0]), rows[0]))


def _pieces(places: Sequence[Place], per_example: bool) -> Pieces:
    """Return where results lie; what is no batch of examples is the same for all."""
    if not per_example:
        return (Piece(places[0].batch, 0, 1),)
    pieces: list[Piece] = []
    for place in places:
        last = pieces[-1] if pieces else None
        if last and last.batch == place.batch and last.stop == place.position:
            pieces[-1] = Piece(last.batch, last.start, last.stop + 1)
        else:
            pieces.append(Piece(place.batch, place.position, place.position + 1))
    return tuple(pieces)
