"""Evaluation of mixed models: what several of them have in common is computed once."""

import copy
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedsim.analysis.mixing.execute import Execution
from fedsim.analysis.mixing.mixes import Mix, Normalisation, Part, Recipe, Source, parts_of, recipe_of
from fedsim.analysis.mixing.paired import check_paired
from fedsim.analysis.mixing.plan import Plan, make_plan
from fedsim.data.dataset import channels_last
from fedsim.models.graph import NotTraceableError, Operation, count_flops, probes_of, trace
from fedsim.models.layers import Layers
from fedsim.models.params import Params, lerp, load_state_
from fedsim.training.buffers import recompute_buffers_
from fedsim.training.evaluation import Criterion, Evaluation, cross_entropies, evaluate, losses_and_errors

# Examples at a time. On a CPU few, as many models are evaluated on them at once.
CPU_TILE, ACCELERATOR_TILE, SMALLEST_TILE = 32, 1024, 8
MAX_MEMORY = 2**30
# That fit into the memory together, if a few examples make one.
TILES = 4
CALIBRATION_BATCH = 125
logger = logging.getLogger(__name__)


class MixedModels:
    """Models whose parts come from several states.

    A model that `torch.fx` can trace, and that treats the examples of a batch one by one, is evaluated operation by
    operation: results that several models have in common are computed once, and what is affine in its weights is not
    computed for mixes of weights whose ends it is computed for. Any other model is evaluated as a whole, with a line in
    the log; the numbers are the same to float tolerance.

    Parameters
    ----------
    model
        Gives the architecture; it is not changed, and models are evaluated in eval mode.
    states
        State dicts; sources are indices into them, -1 the last.
    normalisation
        What becomes of running statistics in a layer that is mixed: ``interpolate`` mixes them with it, ``base``
        keeps the base's, ``recompute`` takes those of the mixed model on ``calibration`` instead.
    calibration
        Inputs, shape [n, ...].
    criterion
        Maps outputs and targets of a batch to one loss per example.
    threads
        That work at a time; the numbers do not depend on it.
    max_memory
        Bytes of results and mixed weights that are kept at a time, all threads together, as far as a few examples' fit.

    Raises
    ------
    ValueError
        If ``recompute`` has no ``calibration``.
    """

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[Params],
        *,
        normalisation: Normalisation = "interpolate",
        calibration: Tensor | None = None,
        criterion: Criterion = cross_entropies,
        threads: int = 1,
        max_memory: int = MAX_MEMORY,
    ) -> None:
        self._model = copy.deepcopy(model).eval()
        load_state_(self._model, states[0])
        has_statistics = any(isinstance(m, _NormBase) and m.running_mean is not None for m in model.modules())
        self._calibration = calibration if normalisation == "recompute" and has_statistics else None
        if normalisation == "recompute" and calibration is None:
            raise ValueError("normalisation = 'recompute' needs calibration inputs; give some of the training inputs")
        self._states = states
        self._criterion = criterion
        self._threads = threads
        self._memory, self._weights_memory = max_memory * 3 // 4, max_memory // 4
        self._local = threading.local()
        self._operations: list[Operation] | None = None
        self._is_traced = self._channels_last = False
        self._counted: list[float] | None = None
        self.parts: tuple[Part, ...] = parts_of(Layers.of(model), normalisation)

    def recipe(self, mix: Mix, t: float | None = None) -> Recipe:
        """Return what a mixed model is made of, at another ``t`` if given; equal models have equal recipes."""
        return recipe_of(mix, self.parts, t)

    def own(self, state: int) -> Recipe:
        """Return the recipe of a state itself."""
        return (state,) * len(self.parts)

    def evaluate(self, recipes: Iterable[Recipe], inputs: Tensor, targets: Tensor) -> dict[Recipe, Evaluation]:
        """Evaluate each distinct recipe on all examples.

        Parameters
        ----------
        inputs, targets
            Inputs as the model takes them, shape [n, ...], and targets, shape [n, ...], on the model's device.

        Raises
        ------
        ValueError
            If there are no inputs, or not as many targets.
        """
        check_paired(inputs, targets)
        distinct = list(dict.fromkeys(recipes))
        operations = self.operations(inputs)
        if operations is None:
            return self._evaluate_whole(distinct, inputs, targets)
        evaluated: dict[Recipe, Evaluation] = {}
        for some, plan in self._plans(operations, distinct):
            evaluated |= dict(zip(some, self._execute(operations, plan, inputs, targets), strict=True))
        return evaluated

    def operations(self, inputs: Tensor) -> list[Operation] | None:
        """Return the model's operations, or None if it can only be evaluated as a whole."""
        if not self._is_traced:
            self._is_traced = True
            try:
                if self._calibration is not None:
                    raise NotTraceableError("its statistics are recomputed")
                self._probes = probes_of(inputs)
                self._operations = trace(self._model, [part.keys for part in self.parts], self._probes)
                # Pooling is faster so by far, but torch's group normalisation on a CPU is ten times slower.
                self._channels_last = not any(each.kind is nn.GroupNorm for each in self._operations)
                self._states = [self._prepared(state) for state in self._states]
            except NotTraceableError as reason:
                logger.info("barriers evaluate each mixed %s as a whole: %s", type(self._model).__name__, reason)
        return self._operations

    def flops(self, recipes: Iterable[Recipe], inputs: Tensor) -> float | None:
        """Return the floating-point operations per example that `evaluate` needs; None if it evaluates whole models."""
        operations = self.operations(inputs)
        if operations is None:
            return None
        plans = self._plans(operations, list(dict.fromkeys(recipes)))
        return sum(plan.total(self._flops(operations)) for _, plan in plans)

    def changed_share(self, layers: Iterable[str]) -> float:
        """Return which share of a forward pass is computed anew when these layers change: all of it at first.

        The model is known once it has been evaluated.
        """
        changed, operations = set(layers), self._operations
        if not changed or operations is None:
            return 1.0 if changed else 0.0
        parts = {i for i, part in enumerate(self.parts) if part.layer in changed}
        dirty: set[int] = set()
        for i, each in enumerate(operations):
            if not parts.isdisjoint(each.parts) or not dirty.isdisjoint(each.inputs):
                dirty.add(i)
        flops = self._flops(operations)
        return sum(flops[i] for i in dirty) / sum(flops) if sum(flops) else 1.0

    def _flops(self, operations: Sequence[Operation]) -> list[float]:
        if self._counted is None:
            self._counted = count_flops(operations, self._model, self._probes)
        return self._counted

    def _plans(self, operations: Sequence[Operation], recipes: list[Recipe]) -> Iterator[tuple[list[Recipe], Plan]]:
        """Yield recipes with their plan, in halves where the results of all are too many to be kept."""
        plan = make_plan(operations, recipes)
        if len(recipes) == 1 or plan.peak_size(operations) * SMALLEST_TILE <= self._memory:
            yield recipes, plan
            return
        # Those that begin with the same layers stay together.
        ordered = sorted(recipes, key=lambda recipe: [s if isinstance(s, tuple) else (s, s, 0.0) for s in recipe])
        middle = len(ordered) // 2
        yield from self._plans(operations, ordered[:middle])
        yield from self._plans(operations, ordered[middle:])

    def _execute(
        self, operations: Sequence[Operation], plan: Plan, inputs: Tensor, targets: Tensor
    ) -> list[Evaluation]:
        """Return the evaluation of each of the plan's recipes."""
        peak = max(1.0, plan.peak_size(operations))
        on_cpu = inputs.device.type == "cpu"
        tile = CPU_TILE if on_cpu else ACCELERATOR_TILE
        # It does not depend on the threads, of which as many work as there is memory for.
        tile = min(tile, max(SMALLEST_TILE, int(self._memory / peak / TILES)))
        threads = max(1, min(self._threads, int(self._memory / (peak * tile)))) if on_cpu else 1
        execution = Execution(self._model, operations, plan, self._states, tile, self._weights_memory)
        distinct = max(execution.outputs) + 1
        losses, errors = torch.empty(2, distinct, len(inputs), dtype=torch.float64)

        def run(start: int) -> None:
            part = slice(start, start + tile)
            expected = targets[part]
            with torch.inference_mode():
                outputs = execution.run(self._in_order(inputs[part]))
                every = expected.repeat(distinct, *[1] * (expected.ndim - 1))
                measured = losses_and_errors(outputs, every, self._criterion)
            for whole, values in zip((losses, errors), measured, strict=True):
                whole[:, part] = values.view(distinct, -1).cpu()

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(0, len(inputs), tile)))
        return [Evaluation(losses[k], errors[k]) for k in execution.outputs]

    def _evaluate_whole(self, recipes: Sequence[Recipe], inputs: Tensor, targets: Tensor) -> dict[Recipe, Evaluation]:
        with ThreadPoolExecutor(self._threads) as pool:
            results = pool.map(lambda recipe: evaluate(self._build(recipe), inputs, targets, self._criterion), recipes)
            return dict(zip(recipes, results, strict=True))

    def _build(self, recipe: Recipe) -> nn.Module:
        """Return this thread's model with the weights of a recipe."""
        if not hasattr(self._local, "model"):
            self._local.model = copy.deepcopy(self._model)
        # Integer entries are in no layer and do not matter in eval mode.
        params = dict(self._states[0])
        for part, source in zip(self.parts, recipe, strict=True):
            params |= self._entries(part.keys, source)
        load_state_(self._local.model, params)
        if self._calibration is not None:
            recompute_buffers_(self._local.model, self._calibration, CALIBRATION_BATCH)
        return self._local.model

    def _entries(self, keys: Sequence[str], source: Source) -> Params:
        if isinstance(source, int):
            return {key: self._states[source][key] for key in keys}
        start, end, t = source
        return lerp(self._entries(keys, start), self._entries(keys, end), t)

    def _prepared(self, state: Params) -> Params:
        """Return a state with the weights of convolutions in the order in which they are used fastest."""
        order = torch.channels_last if self._channels_last else torch.contiguous_format
        return {key: v.contiguous(memory_format=order) if v.ndim == 4 else v for key, v in state.items()}

    def _in_order(self, inputs: Tensor) -> Tensor:
        """Return inputs in that order too."""
        if inputs.ndim != 4:
            return inputs
        return channels_last(inputs) if self._channels_last else inputs.contiguous()
