"""Evaluation of the models of a plan on data, tile by tile."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import torch

from fedsim.analysis.data import Data
from fedsim.analysis.mixing.execute import Execution
from fedsim.analysis.mixing.plan import Plan
from fedsim.analysis.mixing.traced import Traced, graph_errors, in_order
from fedsim.models.graph import NotTraceableError
from fedsim.models.params import Params
from fedsim.training.evaluation import Evaluation, batch_sizes, losses_and_errors
from fedsim.training.settings import Precision

# Examples in a batch: few on a CPU, as many models are evaluated on them at once.
CPU_TILE, ACCELERATOR_TILE, SMALLEST_TILE = 32, 1024, 8
TILES = 4  # batches that must fit into the memory together


def execute_plan(
    traced: Traced,
    plan: Plan,
    states: Sequence[Params],
    data: Data,
    *,
    threads: int,
    memory: int,
    weights_memory: int,
    precision: Precision,
) -> list[Evaluation]:
    """Return the evaluation of each of a plan's recipes.

    Parameters
    ----------
    traced
        Operations of the model that the plan is for.
    states
        State dicts, in the order in which convolutions take their weights.
    threads
        Number of threads at most, as many as there is memory for.
    memory, weights_memory
        Bytes of results and of mixed weights.

    Raises
    ------
    NotTraceableError
        If the operations fail on the data, or the model does not give a row for each example.
    """
    operations = traced.operations
    peak = max(1.0, plan.peak_size(operations))
    on_cpu = data.inputs.device.type == "cpu"
    tile = CPU_TILE if on_cpu else ACCELERATOR_TILE
    # It does not depend on the threads.
    tile = min(tile, max(SMALLEST_TILE, int(memory / peak / TILES)))
    threads = max(1, min(threads, int(memory / (peak * tile)))) if on_cpu else 1
    with graph_errors():
        execution = Execution(traced.model, operations, plan, states, tile, weights_memory, precision)
    distinct = max(execution.outputs) + 1
    losses, errors = torch.empty(2, distinct, len(data), dtype=torch.float64)

    def run(part: slice) -> None:
        expected = data.targets[part]
        with torch.inference_mode():
            with graph_errors():
                outputs = execution.run(in_order(data.inputs[part], traced.is_channels_last))
            if len(outputs) != distinct * len(expected):
                raise NotTraceableError("it does not give a row for each example")
            every = expected.repeat(distinct, *[1] * (expected.ndim - 1))
            measured = losses_and_errors(outputs, every, data.criterion)
        for whole, values in zip((losses, errors), measured, strict=True):
            whole[:, part] = values.view(distinct, -1).cpu()

    sizes = batch_sizes(len(data), tile)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]))
    return [Evaluation(losses[k], errors[k]) for k in execution.outputs]
