"""Ways to run several models on the same examples, layer after layer, with the outputs of each layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedsim.analysis.features.sites import LINEAR, Site, axis_of, fixed_operations, sites_of, with_unique_names
from fedsim.analysis.features.sources import Sources
from fedsim.analysis.mixing.mixes import Source
from fedsim.analysis.mixing.traced import Traced
from fedsim.models.copies import loaded
from fedsim.models.draws import same_draws
from fedsim.models.graph import NotTraceableError
from fedsim.models.layers import Layers
from fedsim.models.operation import is_plain
from fedsim.models.params import Params, first_keys, moves, state_of


class DifferentCallsError(NotTraceableError):
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
    draws
        Whether the model draws random numbers, from the one stream that all threads have.
    """

    model: nn.Module
    sites: list[Site]
    size: float
    prefers_channels_last: bool
    draws: bool

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

    draws = False

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
            # What is computed from the results takes about as much memory again.
            peak = max(peak, sum(live.values()) + 2 * each.size)
            live = {k: size for k, size in live.items() if self._last_use.get(k, i) > i or k == i}
        return peak


class _Call(NamedTuple):
    """A call of a layer's module; ``argument`` is None if it is not linear."""

    name: str
    result: Any
    argument: Any


class ModuleWalk:
    """Model by model, with hooks on the modules of its layers; each run has a new copy, as a model may keep something.

    Parameters
    ----------
    by_layer
        Whether layers have features; if not, the outputs of the model are the only ones.
    draws
        Whether the model draws random numbers, of which it gets the same for each run.
    """

    prefers_channels_last = False

    def __init__(self, model: nn.Module, probes: Tensor, *, by_layer: bool = True, draws: bool = False) -> None:
        self.model, self.draws = model, draws
        modules = dict(model.named_modules())
        names = Layers.of(model).names if by_layer else ()
        # Compiled modules take no hooks.
        self._names = [n for n in names if n in modules and not isinstance(modules[n], torch.jit.ScriptModule)]
        state = state_of(model)
        other = {key: value * 0.9 if moves(value) else value for key, value in state.items()}
        with torch.inference_mode():
            called, again = (self._called(model, probes, each) for each in (state, other))
        self._expected = [each.name for each in called]
        self._check(again)
        # Integers and what has no row for each example are no features.
        features = [k for k, each in enumerate(called) if _is_features(each.result, len(probes))]
        # The outputs are those of the last layer, unless something follows it.
        if len(features) > 1 and _is_same(called[features[-2]].result, called[-1].result):
            features = features[:-1]
        self.size = sum(2.0 * called[k].result.nbytes for k in features) / len(probes)
        sites = []
        first_key = first_keys(model)
        for k in features:
            name, _, argument = called[k]
            site = Site(name, k, axis=axis_of(type(modules[name]) if name in modules else None))
            # What changes with the weights is no input of the model.
            if argument is not None and not torch.equal(argument, again[k].argument) and is_plain(modules[name]):
                keys = {entry: first_key[f"{name}.{entry}"] for entry, _ in modules[name].named_parameters()}
                site = site.of_linear(modules[name], keys)
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
            raise DifferentCallsError("it does not call the same layers for all inputs and weights")

    def _called(self, root: nn.Module, inputs: Tensor, params: Params) -> list["_Call"]:
        """Return the calls of the layers' modules in their order, and the outputs last."""
        called: list[_Call] = []

        def hook_of(name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
            def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
                # What comes later may change them in place.
                argument = [*args, *kwargs.values()][0].clone() if type(module) in LINEAR else None
                # A recurrent layer, or attention, gives more than one tensor.
                value = result[0] if isinstance(result, tuple) and result else result
                called.append(_Call(name, value.clone() if isinstance(value, Tensor) else value, argument))

            return hook

        net = loaded(root, params)
        for name in self._names:
            net.get_submodule(name).register_forward_hook(hook_of(name), with_kwargs=True)
        with same_draws(inputs.device) if self.draws else nullcontext():
            outputs = net(inputs)
        return [*called, _Call("output", outputs, None)]


def _is_features(value: Any, n: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0 and len(value) == n


def _is_same(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
