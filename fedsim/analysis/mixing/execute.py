"""Run a plan on some examples at a time."""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.analysis.mixing.batching import Blending, Pieces, Step, schedule
from fedsim.analysis.mixing.mixes import Source
from fedsim.analysis.mixing.plan import Plan
from fedsim.models.copies import copy_of
from fedsim.models.graph import Operation
from fedsim.models.params import Params
from fedsim.training.precision import computing_in
from fedsim.training.settings import Precision

# Bytes that go through an operation at a time: on a CPU, few enough to stay in its cache.
CPU_BYTES, ACCELERATOR_BYTES = 2**21, 2**28
# Rows of a matrix product.
ROWS = 256
# Operations whose weights autocast would cast at each call.
CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Execution:
    """A plan with the states that its sources name; several threads may run it at once.

    Parameters
    ----------
    model
        The module whose operations these are.
    states
        State dicts.
    n
        Number of examples of a run; the last may have fewer.
    kept_bytes
        Bytes of mixed weights to keep from one run to the next.
    precision
        What the operations compute in, as autocast has it; outputs are of float32.

    Attributes
    ----------
    outputs
        Position of the output of each of the plan's recipes among the distinct ones.
    """

    def __init__(
        self,
        model: nn.Module,
        operations: Sequence[Operation],
        plan: Plan,
        states: Sequence[Params],
        n: int,
        kept_bytes: int,
        precision: Precision = "float32",
    ) -> None:
        self._model = model
        self._precision = precision
        self._operations = operations
        self._plan = plan
        self._states = states
        device = next(iter(states[0].values())).device
        at_a_time = CPU_BYTES if device.type == "cpu" else ACCELERATOR_BYTES
        self._steps, places = schedule(operations, plan, n, at_a_time, ROWS)
        order = {place: k for k, place in enumerate(sorted(places))}
        self.outputs = [order[places[k]] for k in plan.outputs.tolist()]
        self._local = threading.local()
        self._weights: dict[tuple[int, tuple[int, ...]], Params] = {}
        self._kept_bytes = kept_bytes
        self._lock = threading.Lock()

    def run(self, inputs: Tensor) -> Tensor:
        """Return the distinct outputs, those of one model after those of another."""
        if not hasattr(self._local, "root"):
            self._local.root = copy_of(self._model)
        with computing_in(self._precision, inputs.device):
            outputs = self._outputs(inputs)
        return outputs if self._precision == "float32" else outputs.float()

    def _outputs(self, inputs: Tensor) -> Tensor:
        kept: dict[int, list[Any]] = {0: [inputs]}
        for i, step in enumerate(self._steps, 1):
            kept[i] = self._compute(i, step, kept, len(inputs))
            for k in {*self._operations[i].inputs}:
                if self._plan.results[k].last_use == i:
                    del kept[k]
        return torch.cat(kept[len(self._steps)])

    def _compute(self, i: int, step: Step, kept: dict[int, list[Any]], n: int) -> list[Any]:
        operation, root = self._operations[i], self._local.root
        computed: list[Any] = []
        before_tail: dict[int, Tensor] = {}
        for number, batch in enumerate(step.batches):
            if isinstance(batch, Blending):
                value = _blended(batch, before_tail, n)
                for done in batch.done_with:
                    del before_tail[done]
            else:
                arguments = [
                    _joined(kept[k], pieces, n) if self._operations[k].per_example else kept[k][pieces[0].batch]
                    for k, pieces in zip(operation.inputs, batch.arguments, strict=True)
                ]
                value = operation.run(root, arguments, self._own_weights(i, batch.sources))
                if number in step.kept_before_tail:
                    before_tail[number] = value
            computed.append(operation.finish(root, value))
        return computed

    def _own_weights(self, i: int, codes: tuple[int, ...]) -> Params:
        key = (i, codes)
        if key in self._weights:
            return self._weights[key]
        own = {
            entry.name: self._entry(entry.key, self._plan.sources[codes[entry.part]])
            for entry in self._operations[i].entries
        }
        if self._precision == "bfloat16" and self._operations[i].kind in CAST:
            own = {name: value.bfloat16() if value.dtype == torch.float32 else value for name, value in own.items()}
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


def _joined(batches: Sequence[Tensor] | dict[int, Tensor], pieces: Pieces, n: int) -> Tensor:
    """Return results of n examples each as one batch; nothing is copied if they lie next to each other."""
    parts = [batches[piece.batch][piece.start * n : piece.stop * n] for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _blended(batch: Blending, ends: dict[int, Tensor], n: int) -> Tensor:
    firsts, seconds = (_joined(ends, pieces, n) for pieces in (batch.firsts, batch.seconds))
    if len(set(batch.ts)) == 1:
        return torch.lerp(firsts, seconds, batch.ts[0])
    # Numbers of bfloat16 are too coarse for t.
    dtype = torch.promote_types(firsts.dtype, torch.float32)
    ts = torch.tensor(batch.ts, dtype=dtype, device=firsts.device).repeat_interleave(n)
    mixed = torch.lerp(firsts.to(dtype), seconds.to(dtype), ts.view(-1, *[1] * (firsts.ndim - 1)))
    return mixed.to(firsts.dtype)
