"""Computes what a plan needs, for some examples at a time."""

import copy
import threading
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.analysis.mixes import Source
from fedsim.analysis.plan import Plan, Results
from fedsim.analysis.trace import Operation
from fedsim.params import Params

# Bytes that go through an operation at a time: on a CPU, few enough to stay in its cache.
CPU_BYTES, ACCELERATOR_BYTES = 2**22, 2**28


class Execution:
    """A plan with the states that its sources name; may be run in several threads at a time.

    Parameters
    ----------
    model
        The module whose operations these are.
    states
        State dicts.
    kept_bytes
        How many bytes of mixed weights are kept from one run to the next.
    """

    def __init__(
        self,
        model: nn.Module,
        operations: Sequence[Operation],
        plan: Plan,
        states: Sequence[Params],
        kept_bytes: int,
    ) -> None:
        self._model = model
        self._operations = operations
        self._plan = plan
        self._states = states
        self._local = threading.local()
        self._weights: dict[tuple[int, tuple[int, ...]], Params] = {}
        self._kept_bytes = kept_bytes
        self._lock = threading.Lock()

    def run(self, inputs: Tensor) -> list[Tensor]:
        """Return the distinct outputs for the inputs; the plan tells which is whose."""
        if not hasattr(self._local, "root"):
            self._local.root = copy.deepcopy(self._model)
        kept: dict[int, list[Any]] = {0: [inputs]}
        for i, results in enumerate(self._plan.results):
            if i:
                kept[i] = self._compute(i, results, kept, len(inputs))
                for k in {*self._operations[i].inputs}:
                    if self._plan.results[k].last_use == i:
                        del kept[k]
        return kept[len(self._operations) - 1]

    def _compute(self, i: int, results: Results, kept: dict[int, list[Any]], n: int) -> list[Any]:
        operation = self._operations[i]
        direct: list[Any] = [None] * results.computed
        before_tail: list[Any] = [None] * results.computed
        ends = {end for blend in results.blends for end in (blend.first, blend.second)}
        for rows in self._chunks(operation, results, n):
            own = self._own_weights(i, tuple(results.sources[rows[0]].tolist()))
            arguments = [
                _joined([kept[k][results.inputs[row, column]] for row in rows], self._operations[k].per_example)
                for column, k in enumerate(operation.inputs)
            ]
            value = operation.run(self._local.root, arguments, own)
            if len(rows) == 1:
                before_tail[rows[0]], direct[rows[0]] = value, operation.finish(self._local.root, value)
                continue
            if not ends.isdisjoint(rows):
                for row, piece in zip(rows, value.split(n), strict=True):
                    before_tail[row] = piece
            for row, piece in zip(rows, operation.finish(self._local.root, value).split(n), strict=True):
                direct[row] = piece
        return direct + self._blended(operation, results, before_tail, n)

    def _blended(self, operation: Operation, results: Results, ends: Sequence[Tensor], n: int) -> list[Tensor]:
        root, blends, blended = self._local.root, results.blends, []
        at_a_time = max(1, int(_bytes_at_a_time(self._device) // max(1.0, operation.size * n)))
        for chunk in (blends[start : start + at_a_time] for start in range(0, len(blends), at_a_time)):
            if len(chunk) == 1:
                value = torch.lerp(ends[chunk[0].first], ends[chunk[0].second], chunk[0].t)
                blended.append(operation.finish(root, value))
                continue
            firsts = torch.cat([ends[blend.first] for blend in chunk])
            seconds = torch.cat([ends[blend.second] for blend in chunk])
            ts = torch.tensor([blend.t for blend in chunk], dtype=firsts.dtype, device=firsts.device)
            ts = ts.repeat_interleave(n).view(-1, *[1] * (firsts.ndim - 1))
            blended += operation.finish(root, firsts.lerp_(seconds, ts)).split(n)
        return blended

    def _chunks(self, operation: Operation, results: Results, n: int) -> Iterator[list[int]]:
        """Yield the results that are computed together: those with the same weights, as far as memory allows."""
        if not operation.stackable:
            yield from ([row] for row in range(results.computed))
            return
        single = [column for column, k in enumerate(operation.inputs) if not self._operations[k].per_example]
        taken = [self._operations[k] for k in operation.inputs]
        widest = max([operation.size, *(each.finished_size for each in taken)])
        limit = max(1, int(_bytes_at_a_time(self._device) // max(1.0, widest * n)))

        def weights(row: int) -> tuple[int, ...]:
            return (*results.sources[row].tolist(), *results.inputs[row, single].tolist())

        for _, group in groupby(sorted(range(results.computed), key=weights), key=weights):
            rows = list(group)
            yield from (rows[start : start + limit] for start in range(0, len(rows), limit))

    @property
    def _device(self) -> torch.device:
        return next(iter(self._states[0].values())).device

    def _own_weights(self, i: int, codes: tuple[int, ...]) -> Params:
        key = (i, codes)
        if key in self._weights:
            return self._weights[key]
        own = {
            entry.name: self._entry(entry.key, self._plan.sources[codes[entry.part]])
            for entry in self._operations[i].entries
        }
        size = sum(value.nbytes for value in own.values())
        are_mixed = any(not isinstance(self._plan.sources[code], int) for code in codes)
        with self._lock:
            if not are_mixed or size <= self._kept_bytes:
                self._kept_bytes -= size if are_mixed else 0
                self._weights[key] = own
        return own

    def _entry(self, key: str, source: Source) -> Tensor:
        if isinstance(source, int):
            return self._states[source][key]
        start, end, t = source
        return torch.lerp(self._entry(key, start), self._entry(key, end), t)


def _joined(values: Sequence[Any], per_example: bool) -> Any:
    return values[0] if len(values) == 1 or not per_example else torch.cat(list(values))


def _bytes_at_a_time(device: torch.device) -> int:
    return CPU_BYTES if device.type == "cpu" else ACCELERATOR_BYTES
