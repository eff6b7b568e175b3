"""A model's graph, read operation by operation: the layouts of its units in each value and in each weight."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from torch import Tensor, fx, nn

from fedsim.alignment.symmetries import rules_attention, rules_shapes, rules_weights
from fedsim.alignment.symmetries.layouts import Layout, complete, fix_all_, plain, still
from fedsim.alignment.symmetries.rules import METHODS, Call, Rule, layouts_in, rule_of_function, rule_of_module
from fedsim.alignment.symmetries.symbols import Pieces, UnknownError, fresh, write_
from fedsim.models.frozen import frozen_keys
from fedsim.models.params import first_keys
from fedsim.models.tracer import Tracer

# Importing them registers their rules.
RULES = (rules_attention, rules_shapes, rules_weights)


class _Tracer(Tracer):
    """Descends to the modules that have a rule."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        builtin = super().is_leaf_module(m, module_qualified_name)
        return rule_of_module(m) is not None or (builtin and not any(m.children()))


def graph_of(model: nn.Module) -> fx.Graph:
    """Return the operations of a model.

    Raises
    ------
    ValueError
        If the model cannot be traced.
    """
    try:
        return _Tracer().trace(model)
    except Exception as error:  # a model's code may raise anything on a proxy instead of a tensor
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"model = {type(model).__name__} cannot be traced by torch.fx: {reason}") from error


class Weights:
    """Layouts of a model's units in its parameters and buffers, by the first key of each."""

    def __init__(self, model: nn.Module) -> None:
        self.first = first_keys(model)
        self.frozen = frozen_keys(model)
        self.state = model.state_dict()
        self.layouts: dict[str, Layout] = {}

    def layout(self, key: str) -> Layout:
        """Return the layout of a tensor."""
        if key not in self.first:
            raise UnknownError
        key, value = self.first[key], self.state[key]
        if key not in self.layouts:
            shape = value.shape
            moves = value.is_floating_point() and key not in self.frozen
            self.layouts[key] = Layout(tuple(fresh(size) for size in shape)) if moves else still(shape)
        return self.layouts[key]

    def of(self, module: nn.Module, path: str) -> Callable[[str], Layout | None]:
        """Return a function from the name of a module's tensor to its layout, or None if the module lacks it."""

        def layout(name: str) -> Layout | None:
            parent, _, own = name.rpartition(".")
            return None if getattr(module.get_submodule(parent), own) is None else self.layout(f"{path}.{name}")

        return layout

    def axes(self, key: str) -> list[Pieces]:
        """Return the axes of a tensor, which stay in place if no operation has used it."""
        known = self.layouts.get(key) or still(self.state[key].shape)
        return [plain(dimension) for dimension in known.dimensions]

    def fix_(self, path: str) -> None:
        """Leave everything of a module in place."""
        for key in self.first:
            if key == path or key.startswith(f"{path}."):
                fix_all_(self.layout(key))


class Reader(fx.Interpreter):
    """Runs a graph once and records what is known about the value of each node.

    Attributes
    ----------
    known
        Layout of each node's value if it is a tensor, else the value itself.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.weights = Weights(model)
        self.known: dict[fx.Node, Any] = {}
        self.unknown: list[str] = []
        self.ranks = count()

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node, and record what is known about it."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = super().run_node(n)
        self.known[n] = self._read(n, result, args, kwargs)
        return result

    def _read(self, node: fx.Node, result: Any, args: Any, kwargs: Any) -> Any:
        if node.op == "placeholder":
            return _still(result)
        if node.op == "output":
            for layout in layouts_in([fx.map_arg(node.args[0], self.known.__getitem__)]):
                fix_all_(layout)
            return None
        if node.op == "get_attr":
            return self._attribute(str(node.target), result)
        known = self.known.__getitem__
        call = Call(fx.map_arg(node.args, known), fx.map_arg(node.kwargs, known), result, ranks=self.ranks)
        rule: Rule | None = None
        if node.op == "call_module":
            path = str(node.target)
            module = self.module.get_submodule(path)
            call = replace(call, name=path, module=module, weights=self.weights.of(module, path))
            rule = rule_of_module(module)
        elif node.op == "call_function":
            target: Any = node.target
            call = replace(call, run=_tried(lambda first: target(first, *args[1:], **kwargs)))
            rule = rule_of_function(target)
        elif node.op == "call_method":
            name = str(node.target)
            call = replace(call, run=_tried(lambda first: getattr(first, name)(*args[1:], **kwargs)))
            rule = METHODS.get(name)
        if call.module is None and not call.layouts and rule is not rules_shapes.constant:
            return _still(result)
        try:
            if rule is None:
                raise UnknownError
            return _checked(rule(call), result)
        except UnknownError:
            self.unknown.append(node.name)
            for layout in call.layouts:
                fix_all_(layout)
            if call.module is not None:
                self.weights.fix_(call.name)
            return _still(result)

    def _attribute(self, target: str, result: Any) -> Any:
        if target not in self.weights.first or not isinstance(result, Tensor):
            return _still(result)
        layout = self.weights.layout(target)
        for dimension in layout.dimensions:
            write_(plain(dimension), next(self.ranks), target.removesuffix(".weight"))
        return layout


def _still(result: Any) -> Any:
    if isinstance(result, Tensor):
        return still(result.shape)
    return tuple(map(_still, result)) if type(result) in (tuple, list) else result


def _checked(known: Any, result: Any) -> Any:
    """Return what a rule says about a result, if the shapes agree."""
    if isinstance(result, Tensor):
        if not isinstance(known, Layout) or known.shape != tuple(result.shape):
            raise UnknownError
        return complete(known)
    if isinstance(result, tuple | list):
        if isinstance(known, Layout) or not isinstance(known, tuple | list) or len(known) != len(result):
            raise UnknownError
        return tuple(map(_checked, known, result))
    return _still(result)


def _tried(run: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return a function that may not take every tensor, as the parts of a complex one are not those of an index."""

    def result(first: Tensor) -> Any:
        try:
            return run(first)
        except (TypeError, RuntimeError) as error:
            raise UnknownError from error

    return result
