"""Features: the outputs of the layers of several models for batches of the same examples."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from fedsim.analysis.features.sites import Site
from fedsim.analysis.features.sources import Sources
from fedsim.analysis.features.walks import ModuleWalk, OperationWalk, Values, Walk
from fedsim.analysis.mixing.mixed_models import prepared
from fedsim.analysis.mixing.mixes import Source
from fedsim.analysis.mixing.traced import Tracer
from fedsim.data.dataset import channels_last
from fedsim.models.frozen import copy_of
from fedsim.models.graph import NotTraceableError, probes_of
from fedsim.models.params import Params

# Examples in a batch.
CPU_TILE, ACCELERATOR_TILE, SMALLEST_TILE = 64, 1024, 4
# Bytes of results, of all threads together, and of mixed weights.
MAX_MEMORY, WEIGHTS_MEMORY = 2**29, 2**29
T = TypeVar("T")
logger = logging.getLogger(__name__)


class Walks:
    """Ways to run a model layer by layer, found once for each shape of its inputs.

    A model that `torch.fx` can trace is run operation by operation. The features of any other model are the outputs of
    its layers' modules, with a line in the log.
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
        kind = (inputs.shape[1:], inputs.dtype, inputs.device)
        if kind not in self._found:
            self._found[kind] = self._find(inputs)
        return self._found[kind]

    def _find(self, inputs: Tensor) -> Walk:
        try:
            return OperationWalk(self._tracer.traced(inputs))
        except NotTraceableError as reason:
            model = copy_of(self._tracer.model)
            logger.info("features of %s are what its layers' modules give: %s", type(model).__name__, reason)
            return ModuleWalk(model, probes_of(inputs))


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
        If there are no inputs.
    """

    def __init__(
        self, walks: Walks, states: Sequence[Params], inputs: Tensor, sources: Sequence[Source], threads: int = 1
    ) -> None:
        self._walk = walks.of(inputs)
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
        DifferentCallsError
            If a model that cannot be traced does not call its layers as it did for the first inputs.
        """
        if not hasattr(self._local, "root"):
            self._local.root = copy_of(self._walk.model)
        ordered = inputs
        if inputs.ndim == 4:
            ordered = channels_last(inputs) if self._channels_last else inputs.contiguous()
        yield from self._walk.run(self._local.root, ordered, self.weights, self._list)

    def finish(self, site: Site, value: Tensor) -> Tensor:
        """Return the features for a value before what follows without weights."""
        return self._walk.finish(self._local.root, site, value)

    def map(self, function: Callable[[Tensor], T], size: int | None = None) -> list[T]:
        """Return the results of a function for batches of the inputs, in order.

        Parameters
        ----------
        size
            Number of examples in a batch, about the same for all; by default as many as fit into the memory.
        """
        on_cpu = self._inputs.device.type == "cpu"
        each = max(1.0, self._walk.size * len(self._list))
        # It does not depend on the threads, of which as many work as there is memory for.
        fits = max(SMALLEST_TILE, int(MAX_MEMORY / each / 2))
        size = size or min(CPU_TILE if on_cpu else ACCELERATOR_TILE, fits)
        threads = max(1, min(self._threads, int(MAX_MEMORY / each / size))) if on_cpu else 1

        def run(batch: Tensor) -> T:
            with torch.inference_mode():
                return function(batch)

        batches = self._inputs.tensor_split(max(1, -(-len(self._inputs) // size)))
        if threads == 1:
            return list(map(run, batches))
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(run, batches))
