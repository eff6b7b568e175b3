"""Evaluation of mixed models, which computes what several of them have in common only once."""

import copy
import operator
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor, nn

from fedsim.analysis.data import Data
from fedsim.analysis.mixing.execute_plan import CPU_TILE, SMALLEST_TILE, execute_plan
from fedsim.analysis.mixing.mixes import Mix, Part, Recipe, Source, different_codes, parts_of, recipe_of
from fedsim.analysis.mixing.names import Normalisation
from fedsim.analysis.mixing.paired import check_outputs, check_paired
from fedsim.analysis.mixing.plan import Plan, make_plan
from fedsim.analysis.mixing.read_rows import partly_read
from fedsim.analysis.mixing.shared_calls import SharedCalls
from fedsim.analysis.mixing.traced import Traced, Tracer, graph_errors, prepared, say_once
from fedsim.models.copies import loaded
from fedsim.models.draws import same_draws
from fedsim.models.graph import NotTraceableError, Operation
from fedsim.models.layers import Layers
from fedsim.models.norms import has_statistics
from fedsim.models.params import Params, lerp
from fedsim.models.purity import is_close
from fedsim.training.buffers import recompute_buffers_
from fedsim.training.evaluation import Evaluation, batch_sizes, evaluate, is_of_batch, losses_and_errors
from fedsim.training.precision import computing_in
from fedsim.training.settings import Precision

MAX_MEMORY = 2**30
CALIBRATION_BATCH = 125
# Examples of two tiles, for which the whole model must give the same losses as its operations.
CHECKED = 64


class MixedModels:
    """Models whose parts come from several states.

    A model that `torch.fx` can trace, and that treats the examples of a batch one by one, is evaluated operation by
    operation: results that several models have in common are computed once, and operations that are affine in their
    weights are not run for mixes of weights if they are run for both ends. Any other model is evaluated as a whole,
    with a line in the log, and its modules look up what they gave for the same inputs and weights
    (`fedsim.analysis.mixing.shared_calls`); the numbers are the same to float tolerance. One that draws random numbers
    gets the same ones for each mix.

    Parameters
    ----------
    model
        Gives the architecture; it is not changed, and models are evaluated in eval mode.
    states
        State dicts; sources are indices into them, -1 the last.
    normalisation
        How to treat the running statistics of a mixed layer: ``interpolate`` mixes them with it, ``base`` keeps the
        base's, ``recompute`` takes those of the mixed model on ``calibration``.
    calibration
        Inputs, shape [n, ...].
    threads
        Number of threads; the numbers do not depend on it.
    max_memory
        Bytes of results and mixed weights that are kept at a time, by all threads together; at least those of a few
        examples are kept.

    Raises
    ------
    ValueError
        If ``recompute`` has no ``calibration``.

    Attributes
    ----------
    parts
        The parts of the model that each have one source.
    tracer
        Traces the model, once.
    """

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[Params],
        *,
        normalisation: Normalisation = "interpolate",
        calibration: Tensor | None = None,
        threads: int = 1,
        max_memory: int = MAX_MEMORY,
    ) -> None:
        self._calibration = calibration if normalisation == "recompute" and has_statistics(model) else None
        if normalisation == "recompute" and calibration is None:
            raise ValueError("normalisation = 'recompute' needs calibration inputs; give some of the training inputs")
        self._states = states
        self._threads = threads
        self._memory, self._weights_memory = max_memory * 3 // 4, max_memory // 4
        self.parts: tuple[Part, ...] = parts_of(Layers.of(model), normalisation, different_codes(model, states))
        self.tracer = Tracer(model, states[0], self.parts)
        self._known: Traced | None = None
        # For each kind of inputs the modules that leave out rows, or None if none can look up what they gave; and the
        # number of examples of which that was found.
        self._lookup: dict[object, tuple[frozenset[str] | None, int]] = {}
        self._prepared: dict[bool, list[Params]] = {}
        self._precision: Precision = "float32"

    def of(self, states: Sequence[Params]) -> Self:
        """Return mixes of other states of the same model, which is not traced again."""
        other = copy.copy(self)
        other._states, other._prepared = states, {}
        return other

    def in_precision(self, precision: Precision) -> Self:
        """Return the same mixes, evaluated in a precision; call it only after models were evaluated in float32.

        What is checked against whole models is checked in float32, and rounding would hide what differs.
        """
        other = copy.copy(self)
        other._precision, other.tracer = precision, self.tracer.copy()
        return other

    def recipe(self, mix: Mix, t: float | None = None) -> Recipe:
        """Return what a mixed model is made of, at another ``t`` if given; equal models have equal recipes."""
        return recipe_of(mix, self.parts, t)

    def own(self, state: int) -> Recipe:
        """Return the recipe of a state itself."""
        return (state,) * len(self.parts)

    def evaluate(self, recipes: Iterable[Recipe], data: Data) -> dict[Recipe, Evaluation]:
        """Evaluate each distinct recipe on all examples.

        Where some targets do not count, values per example are those of `Evaluation.linearised`.

        Raises
        ------
        ValueError
            If there are no inputs, some are not finite, there are not as many targets, or there is no criterion and the
            model has a single class.
        """
        check_paired(data)
        check_outputs(data, self.tracer.outputs(data.inputs))
        distinct = list(dict.fromkeys(recipes))
        evaluated = self._evaluated(distinct, data)
        counts = data.target_counts
        if counts is None:
            return evaluated
        return {recipe: replace(each, counts=counts).linearised() for recipe, each in evaluated.items()}

    def is_same_in_any_batch(self, inputs: Tensor) -> bool:
        """Return whether what the model gives for an example is the same in another batch, and in another call."""
        return self._traced(inputs) is not None or self.tracer.is_same_in_any_batch(inputs)

    def operations(self, inputs: Tensor) -> Sequence[Operation] | None:
        """Return the model's operations, or None if it can only be evaluated as a whole."""
        traced = self._traced(inputs)
        return None if traced is None else traced.operations

    def flops(self, recipes: Iterable[Recipe], inputs: Tensor) -> float | None:
        """Return the floating-point operations per example that `evaluate` needs; None if it evaluates whole models."""
        traced = self._traced(inputs)
        if traced is None:
            return None
        plans = self._plans(traced.operations, list(dict.fromkeys(recipes)))
        return sum(plan.total(traced.flops) for _, plan in plans)

    def build(self, recipe: Recipe) -> nn.Module:
        """Return a new model with the weights of a recipe, as what a model keeps is that of no other."""
        params = dict(self._states[0])
        for part, source in zip(self.parts, recipe, strict=True):
            params |= self._entries(part.keys, source)
        model = loaded(self.tracer.model, params, resizes=True)
        if self._calibration is not None:
            with self._same_draws(self._calibration, training=True):
                recompute_buffers_(model, self._calibration, CALIBRATION_BATCH)
        return model

    def changed_share(self, layers: Iterable[str]) -> float:
        """Return the share of a forward pass that must be repeated when these layers change: at first, all of it.

        The share is known once the model has been evaluated.
        """
        changed, traced = set(layers), self._known
        if not changed or traced is None:
            return 1.0 if changed else 0.0
        return traced.changed_share({i for i, part in enumerate(self.parts) if part.layer in changed})

    def _traced(self, inputs: Tensor) -> Traced | None:
        try:
            if self._calibration is not None:
                raise NotTraceableError("its statistics are recomputed")
            self._known = self.tracer.traced(inputs)
        except NotTraceableError as reason:
            name = type(self.tracer.model).__name__
            say_once(self.tracer.origin, f"barriers evaluate each mixed {name} as a whole: {reason}")
            self._known = None
        return self._known

    def _evaluated(self, recipes: list[Recipe], data: Data) -> dict[Recipe, Evaluation]:
        if is_of_batch(data.criterion):
            return self._evaluate_whole(recipes, data)
        traced = self._traced(data.inputs)
        if traced is None:
            return self._evaluate_calls(recipes, data)
        try:
            if not self._is_checked(traced.checked, data):
                self._check(traced, recipes, data)
            return self._evaluate_graph(traced, recipes, data)
        except NotTraceableError as reason:
            self.tracer.refuse(data.inputs, reason)
            return self._evaluated(recipes, data)

    def _is_checked(self, examples: int, data: Data) -> bool:
        """Return whether the whole model was compared on as many examples as it can be; rounding hides differences."""
        return examples >= min(len(data), CHECKED) or (examples > 0 and self._precision != "float32")

    def _check(self, traced: Traced, recipes: Sequence[Recipe], data: Data) -> None:
        """Compare the losses of a mixed model on some of the data with what the whole model gives.

        Raises
        ------
        NotTraceableError
            If they differ.
        """
        some = data[:CHECKED]
        mixed = max(recipes, key=lambda recipe: sum(isinstance(source, tuple) for source in recipe))
        # With its ends, as results are mixed and models stacked if there are several.
        ends = {end for source in mixed for end in (source[:2] if isinstance(source, tuple) else (source,))}
        found = self._evaluate_graph(traced, list(dict.fromkeys([mixed, *map(self.own, sorted(ends))])), some)
        if not is_close(found[mixed].losses, self._evaluate_whole([mixed], some)[mixed].losses):
            raise NotTraceableError("its graph gives other losses on these data")
        traced.checked = len(some)

    def _evaluate_graph(self, traced: Traced, recipes: list[Recipe], data: Data) -> dict[Recipe, Evaluation]:
        evaluated: dict[Recipe, Evaluation] = {}
        with graph_errors():
            plans = list(self._plans(traced.operations, recipes))
        for some, plan in plans:
            found = execute_plan(
                traced,
                plan,
                self._prepared_states(traced.is_channels_last),
                data,
                threads=self._threads,
                memory=self._memory,
                weights_memory=self._weights_memory,
                precision=self._precision,
            )
            evaluated |= dict(zip(some, found, strict=True))
        return evaluated

    def _plans(self, operations: Sequence[Operation], recipes: list[Recipe]) -> Iterator[tuple[list[Recipe], Plan]]:
        """Yield recipes with their plan, in halves if the results of all are too large to be kept."""
        plan = make_plan(operations, recipes)
        if len(recipes) == 1 or plan.peak_size(operations) * SMALLEST_TILE <= self._memory:
            yield recipes, plan
            return
        # Those that begin with the same layers stay together.
        ordered = sorted(recipes, key=lambda recipe: [s if isinstance(s, tuple) else (s, s, 0.0) for s in recipe])
        middle = len(ordered) // 2
        yield from self._plans(operations, ordered[:middle])
        yield from self._plans(operations, ordered[middle:])

    def _evaluate_calls(self, recipes: Sequence[Recipe], data: Data) -> dict[Recipe, Evaluation]:
        """Evaluate a model that is no graph, but whose modules are functions of their inputs and weights."""
        is_function = self._calibration is None and self.tracer.is_function(data.inputs[:SMALLEST_TILE])
        if not is_function or not self.tracer.is_same_in_any_batch(data.inputs):
            return self._evaluate_whole(recipes, data)
        kind = data.inputs.shape[1:]
        lookup, checked = self._lookup.get(kind, (frozenset(), 0))
        if not self._is_checked(checked, data):
            lookup = frozenset()
            some = data[:CHECKED]
            # Unlike the first one in as many parts as possible, so that rows are left out of all modules.
            other = min(recipes, key=lambda recipe: sum(map(operator.eq, recipe, recipes[0])))
            few = list(dict.fromkeys([recipes[0], other]))
            partly = partly_read(self.tracer.model, some.inputs[:SMALLEST_TILE])
            expected = self._evaluate_whole(few, some)
            try:
                found, never_left_out = self._evaluate_shared(few, some, partly)
                agrees = all(is_close(found[each].losses, expected[each].losses) for each in few)
            except Exception:  # a model's code may raise anything where its modules are not called as usual
                agrees = False
            if not agrees or not never_left_out:
                lookup = partly if agrees else None
                self._lookup[kind] = lookup, len(some)
        return (
            self._evaluate_whole(recipes, data) if lookup is None else self._evaluate_shared(recipes, data, lookup)[0]
        )

    def _evaluate_shared(
        self, recipes: Sequence[Recipe], data: Data, partly: Collection[str]
    ) -> tuple[dict[Recipe, Evaluation], set[str]]:
        """Return evaluations, and the modules of ``partly`` of which no rows could be left out."""
        place = {recipe: k for k, recipe in enumerate(recipes)}
        losses, errors = torch.empty(2, len(recipes), len(data), dtype=torch.float64)
        threads = self._threads if data.inputs.device.type == "cpu" else 1
        sizes = batch_sizes(len(data), CPU_TILE)
        parts = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]

        def run(own: Sequence[slice]) -> set[str]:
            shared = SharedCalls(self.tracer.model, self.parts, self._entries, self._memory / threads, partly)
            with computing_in(self._precision, data.inputs.device):
                for part in own:
                    for recipe, outputs in shared.outputs(recipes, data.inputs[part]):
                        measured = losses_and_errors(self._widened(outputs), data.targets[part], data.criterion)
                        for whole, values in zip((losses, errors), measured, strict=True):
                            whole[place[recipe], part] = values.double().cpu()
            return shared.never_left_out

        with ThreadPoolExecutor(threads) as pool:
            never_left_out = set.intersection(*pool.map(run, [parts[k::threads] for k in range(threads)]))
        return {recipe: Evaluation(losses[k], errors[k]) for recipe, k in place.items()}, never_left_out

    def _evaluate_whole(self, recipes: Sequence[Recipe], data: Data) -> dict[Recipe, Evaluation]:
        def measured(recipe: Recipe) -> Evaluation:
            model, device = self.build(recipe), data.inputs.device
            model.register_forward_hook(lambda module, inputs, outputs: self._widened(outputs))
            with self._same_draws(data.inputs), computing_in(self._precision, device):
                return evaluate(model, data.inputs, data.targets, data.criterion)

        draws, calibration = self.tracer.draws, self._calibration
        is_random = draws(data.inputs) or (calibration is not None and draws(calibration, training=True))
        with ThreadPoolExecutor(1 if is_random else self._threads) as pool:
            return dict(zip(recipes, pool.map(measured, recipes), strict=True))

    def _same_draws(self, inputs: Tensor, *, training: bool = False) -> AbstractContextManager[None]:
        """Let a model that draws from the streams of all threads get the same numbers for each mix."""
        return same_draws(inputs.device) if self.tracer.draws(inputs, training=training) else nullcontext()

    def _widened(self, outputs: Tensor) -> Tensor:
        return outputs if self._precision == "float32" else outputs.float()

    def _entries(self, keys: Sequence[str], source: Source) -> Params:
        if isinstance(source, int):
            return {key: self._states[source][key] for key in keys}
        start, end, t = source
        return lerp(self._entries(keys, start), self._entries(keys, end), t)

    def _prepared_states(self, is_channels_last: bool) -> list[Params]:
        if is_channels_last not in self._prepared:
            self._prepared[is_channels_last] = [prepared(state, is_channels_last) for state in self._states]
        return self._prepared[is_channels_last]
