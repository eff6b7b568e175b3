"""Features: the outputs of the layers of several models for batches of the same examples."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from fedsim.analysis.features.sites import Site
from fedsim.analysis.features.sources import Sources
from fedsim.analysis.features.walks import DifferentCallsError, ModuleWalk, OperationWalk, Values, Walk
from fedsim.analysis.mixing.mixes import Source
from fedsim.analysis.mixing.paired import check_inputs
from fedsim.analysis.mixing.traced import Tracer, in_order, kind_of, prepared, say_once
from fedsim.errors import first_line
from fedsim.models.copies import copy_of
from fedsim.models.graph import NotTraceableError, probes_of
from fedsim.models.params import Params
from fedsim.training.evaluation import batch_sizes, examples_at_a_time

# Examples in a batch.
CPU_TILE, ACCELERATOR_TILE, SMALLEST_TILE = 64, 1024, 4
# Bytes of results, of all threads together, and of mixed weights.
MAX_MEMORY, WEIGHTS_MEMORY = 2**29, 2**29
T = TypeVar("T")


class Walks:
    """Ways to run a model layer by layer, found once for each shape of its inputs.

    A model that `torch.fx` can trace is run operation by operation. The features of any other model are the outputs of
    its layers' modules, with a line in the log; if it does not always call the same ones, they are its outputs alone.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._found: dict[tuple[torch.Size, torch.dtype, torch.device], Walk] = {}

    def of(self, inputs: Tensor) -> Walk:
        """Return the walk for inputs of this shape.

        Raises
        ------
        ValueError
            If there are no inputs.
        """
        kind = kind_of(inputs)
        if kind not in self._found:
            self._found[kind] = self._find(inputs)
        return self._found[kind]

    def is_same_in_any_batch(self, inputs: Tensor) -> bool:
        """Return whether what the model gives for an example is the same in another batch, and in another call."""
        return isinstance(self.of(inputs), OperationWalk) or self._tracer.is_same_in_any_batch(inputs)

    def after(self, inputs: Tensor, problem: NotTraceableError) -> Walk:
        """Return another walk for inputs of this shape, as the one so far has failed."""
        kind = kind_of(inputs)
        if isinstance(problem, DifferentCallsError):
            self._found[kind] = self._outputs(inputs, problem)
        else:
            self._tracer.refuse(inputs, problem)
            self._found[kind] = self._find(inputs)
        return self._found[kind]

    def _find(self, inputs: Tensor) -> Walk:
        try:
            return OperationWalk(self._tracer.traced(inputs))
        except NotTraceableError as reason:
            try:
                walk = ModuleWalk(self._tracer.model, probes_of(inputs), draws=self._tracer.draws(inputs))
            except DifferentCallsError as problem:
                return self._outputs(inputs, problem)
            self._say("what its layers' modules give", reason)
            return walk

    def _outputs(self, inputs: Tensor, problem: DifferentCallsError) -> Walk:
        self._say("its outputs alone", problem)
        draws = self._tracer.draws(inputs)
        return ModuleWalk(self._tracer.model, probes_of(inputs), by_layer=False, draws=draws)

    def _say(self, what: str, reason: NotTraceableError) -> None:
        say_once(self._tracer.origin, f"features of {type(self._tracer.model).__name__} are {what}: {reason}")


class Features:
    """The features of several models in eval mode, all models at one layer before any is at the next.

    Parameters
    ----------
    walks
        Ways to run the models' architecture.
    states
        State dicts; sources are indices into them, -1 the last.
    inputs
        Inputs as the model takes them, shape [n, ...], on the model's device.
    sources
        The models whose features are asked for.
    threads
        Number of threads.

    Raises
    ------
    ValueError
        If there are no inputs, or some are not finite.
    """

    def __init__(
        self, walks: Walks, states: Sequence[Params], inputs: Tensor, sources: Sequence[Source], threads: int = 1
    ) -> None:
        check_inputs(inputs)
        self._walks, self._walk = walks, walks.of(inputs)
        self._inputs, self._list, self._threads = inputs, list(sources), threads
        self._local = threading.local()
        self._channels_last = self._walk.prefers_channels_last
        self.weights = Sources([prepared(state, self._channels_last) for state in states], WEIGHTS_MEMORY)

    @property
    def sites(self) -> Sequence[Site]:
        """Where features are taken, in forward order."""
        return self._walk.sites

    def walk(self, inputs: Tensor) -> Iterator[tuple[Site, list[Values]]]:
        """Yield for each site the values of each source; they are freed when the next one is asked for.

        Parameters
        ----------
        inputs
            Some of the inputs.

        Raises
        ------
        NotTraceableError
            If the model cannot be run in this way, which `map` changes then.
        """
        if not hasattr(self._local, "root"):
            self._local.root = copy_of(self._walk.model)
        try:
            ordered = in_order(inputs, self._channels_last)
            yield from self._walk.run(self._local.root, ordered, self.weights, self._list)
        except NotTraceableError:
            raise
        except Exception as error:  # a model's operations may raise anything
            if isinstance(self._walk, ModuleWalk):
                raise
            raise NotTraceableError(f"its graph cannot be run ({first_line(error)})") from error

    def finish(self, site: Site, value: Tensor) -> Tensor:
        """Return the features for a value before what follows without weights."""
        return self._walk.finish(self._local.root, site, value)

    def map(self, function: Callable[[Tensor], T], size: int | None = None) -> list[T]:
        """Return the results of a function for batches of the inputs, in order.

        Parameters
        ----------
        size
            Number of examples in a batch, about the same for all; by default as many as fit into the memory, or as
            `fedsim.training.evaluation.evaluate` takes if the features of an example depend on its batch.
        """
        try:
            return self._map(function, size)
        except NotTraceableError as problem:
            self._walk, self._local = self._walks.after(self._inputs, problem), threading.local()
            self._channels_last = self._walk.prefers_channels_last
            return self.map(function, size)

    def _map(self, function: Callable[[Tensor], T], size: int | None) -> list[T]:
        on_cpu = self._inputs.device.type == "cpu"
        each = max(1.0, self._walk.size * len(self._list))
        # It does not depend on the threads, of which as many work as there is memory for.
        fits = max(SMALLEST_TILE, int(MAX_MEMORY / each / 2))
        if size is None and not self._walks.is_same_in_any_batch(self._inputs):
            size = examples_at_a_time(self._inputs.device)
            batches = self._inputs.split(batch_sizes(len(self._inputs), size))
        else:
            size = size or min(CPU_TILE if on_cpu else ACCELERATOR_TILE, fits)
            batches = self._inputs.tensor_split(max(1, -(-len(self._inputs) // size)))
        may_share = on_cpu and not self._walk.draws
        threads = max(1, min(self._threads, int(MAX_MEMORY / each / size))) if may_share else 1

        def run(batch: Tensor) -> T:
            with torch.inference_mode():
                return function(batch)

        if threads == 1:
            return list(map(run, batches))
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(run, batches))
