"""The permutation symmetries of a model, derived from its operations."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from fedsim.alignment.symmetries.layouts import Layout, independent
from fedsim.alignment.symmetries.permutations import Axis, Segment, Spec, Symmetry, constants_of
from fedsim.alignment.symmetries.reader import Reader, Weights, graph_of
from fedsim.alignment.symmetries.symbols import NEVER, Pieces, Symbol, resolve, root
from fedsim.models.architectures.experts import MixtureOfExperts
from fedsim.models.asymmetry import is_asymmetric
from fedsim.models.copies import copy_of
from fedsim.models.params import Params

STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Derivation:
    """The symmetries of a model, and the places of its units in everything that it computes.

    Parameters
    ----------
    spec
        Symmetries of the model.
    model
        Copy of the model, in eval mode.
    graph
        Operations of the model.
    values
        Axes of each operation that returns one tensor, one per dimension, by the name of its node. Tensors in which one
        dimension depends on another, such as the units of each head, are left out.
    unknown
        Names of the nodes of operations without a rule, whose inputs stay in place.
    """

    spec: Spec
    model: nn.Module
    graph: fx.Graph
    values: Mapping[str, tuple[Axis, ...]]
    unknown: tuple[str, ...]

    def run(self, params: Params, inputs: Tensor, visit: Callable[[fx.Node, Any], None]) -> Any:
        """Run a model of this architecture; ``visit`` is called with each operation and what it returns.

        Later operations may change the values in place, though not ``inputs``.

        Parameters
        ----------
        params
            Entries of `fedsim.models.params.state_of`; missing ones are taken from ``model``.
        """
        runner = _Runner(self.model, self.graph, visit)
        with torch.inference_mode(False), torch.no_grad():  # where tensors say what changes them
            return functional_call(runner, {f"model.{key}": value for key, value in params.items()}, (inputs.clone(),))


class _Runner(nn.Module):
    def __init__(self, model: nn.Module, graph: fx.Graph, visit: Callable[[fx.Node, Any], None]) -> None:
        super().__init__()
        self.model, self.graph, self.visit = model, graph, visit

    def forward(self, inputs: Tensor) -> Any:
        return _Visitor(self.model, self.graph, self.visit).run(inputs)


class _Visitor(fx.Interpreter):
    def __init__(self, model: nn.Module, graph: fx.Graph, visit: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(model, graph=graph)
        self.visit = visit

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.visit(n, value)
        return value


def permutation_spec(model: nn.Module, inputs: Tensor) -> Spec:
    """Return the permutation symmetries of a model, as `derive_some` finds them."""
    return derive_some(model, inputs).spec


def derive_some(model: nn.Module, inputs: Tensor) -> Derivation:
    """Return what `derive` does, for models that are to be aligned.

    Raises
    ------
    ValueError
        As from `derive`, and if no symmetry could be derived from a model that is asymmetric or has operations without
        a rule. Others without a symmetry, such as a single linear layer, have no units to align.
    """
    found = derive(model, inputs)
    asymmetric = is_asymmetric(model)
    if found.spec.symmetries or not (asymmetric or found.unknown):
        return found
    reason = (
        "it is asymmetric, so that there is nothing to match" if asymmetric else f"no rule for its {found.unknown[0]!r}"
    )
    raise ValueError(f"model = {type(model).__name__} has no units that are known to change places ({reason})")


def derive(model: nn.Module, inputs: Tensor) -> Derivation:
    """Find out which units of a model can change places without changing what it computes.

    Every operation determines which axes of its inputs, weights and outputs move together. Units that an operation
    without a rule uses stay in place, as do those of frozen layers and the model's inputs and outputs, so that the
    symmetries found are correct, if not always complete.

    Parameters
    ----------
    model
        Model to analyse; it is not changed.
    inputs
        Two or more inputs, on the model's device.

    Raises
    ------
    ValueError
        If there are fewer than two inputs or the model does not take them, or if it cannot be traced or its results
        vary.

    References
    ----------
    Ainsworth et al. 2023, Git Re-Basin, arXiv 2209.04836, where each architecture's specification is written by hand.
    """
    if len(inputs) < 2:
        raise ValueError(f"len(inputs) = {len(inputs)} must be at least 2; pass more inputs")
    model = copy_of(model).eval()
    reader = Reader(model, graph_of(model))
    with torch.no_grad():
        expected, found = _outputs(model, inputs.clone()), reader.run(inputs.clone())
    if not isinstance(found, Tensor) or not torch.allclose(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ValueError(
            f"model = {type(model).__name__}: its torch.fx graph must compute the same tensor as the model"
        )
    spec, names = _spec(reader.weights, model)
    values = {
        node.name: tuple(_axis(each, names) for each in axes)
        for node, known in reader.known.items()
        if isinstance(known, Layout) and None not in (axes := [independent(each) for each in known.dimensions])
    }
    return Derivation(spec, model, reader.graph, values, tuple(reader.unknown))


def _outputs(model: nn.Module, inputs: Tensor) -> Any:
    try:
        return model(inputs)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"model = {type(model).__name__} does not take inputs of shape {tuple(inputs.shape)} and {inputs.dtype} "
            f"({reason}); pass inputs that it takes"
        ) from error


def _spec(weights: Weights, model: nn.Module) -> tuple[Spec, dict[Symbol, str]]:
    axes = {key: weights.axes(key) for key, value in weights.state.items() if _is_own(key, value, weights)}
    used: dict[Symbol, str] = {}
    for key, own in axes.items():
        for symbol in (piece.symbol for axis in own for piece in resolve(axis)):
            if symbol is not None:
                used.setdefault(symbol, key)
    names = _names(used)
    named = {key: tuple(_axis(axis, names) for axis in own) for key, own in axes.items()}
    spec = Spec(
        _symmetries(names),
        named,
        frozenset(key for key in axes if key.rpartition(".")[2] in STATISTICS),
        gates=frozenset(_gates(weights, model)),
        constants=constants_of(model, named),
    )
    return spec, names


def _gates(weights: Weights, model: nn.Module) -> set[str]:
    """Return the tensors that are used in the gates of mixtures of experts only."""
    modules = model.named_modules(remove_duplicate=False)
    paths = [name for name, each in modules if getattr(type(each), "forward", None) is MixtureOfExperts.forward]
    of_gates = {key for key in weights.first if key.startswith(tuple(f"{path}.gate.".lstrip(".") for path in paths))}
    return of_gates - {first for key, first in weights.first.items() if key not in of_gates}


def _is_own(key: str, value: Tensor, weights: Weights) -> bool:
    return weights.first[key] == key and value.is_floating_point() and key not in weights.frozen


def _names(used: Mapping[Symbol, str]) -> dict[Symbol, str]:
    """Return the name of each order, after the parameter that writes it first, in the order of a forward pass."""
    ranked = sorted(used, key=lambda symbol: symbol.source or NEVER)
    bases = {symbol: symbol.source[1] if symbol.source else used[symbol].removesuffix(".weight") for symbol in ranked}
    alone, same = Counter(bases.values()), Counter((bases[symbol], symbol.role) for symbol in ranked)
    numbers: Counter[tuple[str, str]] = Counter()
    names = {}
    for symbol, base in bases.items():
        kind = (base, symbol.role)
        number = str(numbers[kind]) if same[kind] > 1 or (alone[base] > 1 and not symbol.role) else ""
        numbers[kind] += 1
        suffix = symbol.role + number
        names[symbol] = f"{base}:{suffix}" if suffix else base
    return names


def _symmetries(names: Mapping[Symbol, str]) -> tuple[Symmetry, ...]:
    together: dict[Symbol, dict[str, int]] = {}
    for symbol, name in names.items():
        leader = symbol if symbol.blocks is None else root(symbol.blocks)
        together.setdefault(leader, {})[name] = symbol.width
    return tuple(Symmetry(leader.units, widths) for leader, widths in together.items())


def _axis(axis: Pieces | None, names: Mapping[Symbol, str]) -> Axis:
    return tuple(
        Segment(each.length, names[each.symbol], each.repeat)
        if each.symbol is not None and each.symbol in names
        else Segment(each.length)
        for each in resolve(axis or ())
    )
