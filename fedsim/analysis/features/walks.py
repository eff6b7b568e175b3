"""Ways to run several models on the same examples, layer after layer, with the outputs of each layer."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from fedsim.analysis.features.sites import LINEAR, Site, fixed_operations, sites_of, with_unique_names
from fedsim.analysis.features.sources import Sources
from fedsim.analysis.mixing.mixes import Source
from fedsim.analysis.mixing.traced import Traced
from fedsim.models.layers import Layers
from fedsim.models.params import Params, first_keys


class DifferentCallsError(ValueError):
    """A model that calls its layers differently for other inputs or weights."""


class Values(NamedTuple):
    """The values of a model at a site.

    Parameters
    ----------
    features
        Shape [n, ...].
    before
        The same before what follows without weights.
    argument
        The tensor that the site's module takes, if this is linear, else None.
    """

    features: Tensor
    before: Tensor
    argument: Any


class Walk(Protocol):
    """A way to run a model.

    Attributes
    ----------
    model
        The model, of which each thread takes a copy.
    sites
        Where features are taken, in forward order.
    size
        Most bytes that are kept of one example.
    prefers_channels_last
        Whether images are stored with their channels last.
    """

    model: nn.Module
    sites: list[Site]
    size: float
    prefers_channels_last: bool

    def run(
        self, root: nn.Module, inputs: Tensor, weights: Sources, sources: Sequence[Source]
    ) -> Iterator[tuple[Site, list[Values]]]:
        """Yield for each site the values of each source; they are freed when the next one is asked for.

        Parameters
        ----------
        root
            A copy of the model that no other thread uses.
        """
        ...

    def finish(self, root: nn.Module, site: Site, value: Tensor) -> Tensor:
        """Return the features for a value before what follows without weights."""
        ...


class OperationWalk:
    """Operation by operation: what no later one takes is freed."""

    def __init__(self, traced: Traced) -> None:
        self.model, probes = traced.model, traced.probes
        self._operations = traced.operations
        self._fixed = fixed_operations(self._operations)
        self._last_use = {k: i for i, each in enumerate(self._operations) for k in each.inputs}
        self.prefers_channels_last = traced.is_channels_last
        self.size = self._peak()
        weights = Sources([dict(self.model.state_dict())], 0)
        with torch.inference_mode():
            results = [before for before, _ in self._results(self.model, probes, weights, [0])]
        self.sites = sites_of(self._operations, self.model, [probes, *(each[0] for each in results)])

    def run(
        self, root: nn.Module, inputs: Tensor, weights: Sources, sources: Sequence[Source]
    ) -> Iterator[tuple[Site, list[Values]]]:
        """Yield what the operations give."""
        places = {site.place: site for site in self.sites}
        kept: dict[int, list[Any]] = {}
        for i, (before, after) in enumerate(self._results(root, inputs, weights, sources, kept), 1):
            if i in places:
                site = places[i]
                arguments = kept[self._operations[i].inputs[0]] if site.module is not None else [None] * len(sources)
                yield site, [Values(*each) for each in zip(after, before, arguments, strict=True)]

    def finish(self, root: nn.Module, site: Site, value: Tensor) -> Tensor:
        """Return what the tail makes of a value."""
        return self._operations[site.place].finish(root, value)

    def _results(
        self,
        root: nn.Module,
        inputs: Tensor,
        weights: Sources,
        sources: Sequence[Source],
        kept: dict[int, list[Any]] | None = None,
    ) -> Iterator[tuple[list[Any], list[Any]]]:
        """Yield what each operation gives for each source, before and after its tail."""
        kept = {} if kept is None else kept
        kept[0] = [inputs] * len(sources)
        for i, each in enumerate(self._operations[1:], 1):
            before: list[Any] = []
            after: list[Any] = []
            for number, source in enumerate(sources):
                if not self._fixed[i] or not before:
                    own = {entry.name: weights.entry(entry.key, source) for entry in each.entries}
                    before.append(each.run(root, [kept[k][number] for k in each.inputs], own))
                    after.append(each.finish(root, before[-1]))
                else:
                    before.append(before[0])
                    after.append(after[0])
            kept[i] = after
            yield before, after
            for k in {*each.inputs}:
                if self._last_use[k] == i:
                    del kept[k]

    def _peak(self) -> float:
        """Return the most bytes per example that are kept of one model."""
        live, peak = {0: self._operations[0].size}, 0.0
        for i, each in enumerate(self._operations[1:], 1):
            live[i] = each.finished_size
            # Beside the results, about as much is needed for what is computed from them.
            peak = max(peak, sum(live.values()) + 2 * each.size)
            live = {k: size for k, size in live.items() if self._last_use.get(k, i) > i or k == i}
        return peak


class _Call(NamedTuple):
    """A call of a layer's module; ``argument`` is None if it is not linear."""

    name: str
    result: Any
    argument: Any


class ModuleWalk:
    """Model by model, with hooks on the modules of its layers."""

    prefers_channels_last = False

    def __init__(self, model: nn.Module, probes: Tensor) -> None:
        self.model = model
        self._names = [layer.name for layer in Layers.of(model) if layer.name in dict(model.named_modules())]
        for module in model.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        state = dict(model.state_dict())
        other = {key: value * 0.9 if value.is_floating_point() else value for key, value in state.items()}
        with torch.inference_mode():
            called, again = (self._called(model, probes, each) for each in (state, other))
        self._expected = [each.name for each in called]
        self._check(again)
        # Integers, tuples and what has no row for each example are no features.
        features = [k for k, each in enumerate(called) if _is_features(each.result, len(probes))]
        self.size = sum(2.0 * called[k].result.nbytes for k in features) / len(probes)
        sites = []
        first_key = first_keys(model)
        for k in features:
            name, _, argument = called[k]
            site = Site(name, k)
            # What changes with the weights is no input of the model.
            if argument is not None and not torch.equal(argument, again[k].argument):
                module = model.get_submodule(name)
                keys = {entry: first_key[f"{name}.{entry}"] for entry, _ in module.named_parameters()}
                site = site.of_linear(module, keys)
            sites.append(site)
        self.sites = with_unique_names(sites)

    def run(
        self, root: nn.Module, inputs: Tensor, weights: Sources, sources: Sequence[Source]
    ) -> Iterator[tuple[Site, list[Values]]]:
        """Yield what the modules give."""
        every = [self._called(root, inputs, weights.params(source)) for source in sources]
        for called in every:
            self._check(called)
        for site in self.sites:
            calls = [called[site.place] for called in every]
            yield site, [Values(call.result, call.result, call.argument) for call in calls]

    def finish(self, root: nn.Module, site: Site, value: Tensor) -> Tensor:
        """Return the value itself."""
        return value

    def _check(self, called: Sequence["_Call"]) -> None:
        """Check that the calls are those of the first inputs, by whose positions features are taken."""
        if [each.name for each in called] != self._expected:
            raise DifferentCallsError(
                "the model does not call the same layers for every input; connectivity and cka cannot be measured of it"
            )

    def _called(self, root: nn.Module, inputs: Tensor, params: Params) -> list["_Call"]:
        """Return the calls of the layers' modules in their order."""
        called: list[_Call] = []

        def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, result: Any) -> None:
                # What comes later may change them in place.
                argument = args[0].clone() if type(module) in LINEAR else None
                called.append(_Call(name, result.clone() if isinstance(result, Tensor) else result, argument))

            return hook

        handles: list[RemovableHandle] = []
        try:
            handles += [root.get_submodule(name).register_forward_hook(hook_of(name)) for name in self._names]
            functional_call(root, params, (inputs,))
        finally:
            for handle in handles:
                handle.remove()
        return called


def _is_features(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0 and len(value) == n
