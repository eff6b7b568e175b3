"""The effect of each operation of torch on the units of its inputs: the registry, and operations without weights."""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.alignment.symmetries.layouts import Layout, Part, broadcast_, plain, stay_
from fedsim.alignment.symmetries.symbols import Pieces, UnknownError, fixed, write_
from fedsim.models.architectures.experts import TopKSoftmax


@dataclass(frozen=True)
class Call:
    """One operation of a model, with layouts in place of tensors.

    Parameters
    ----------
    args, kwargs
        Arguments of the operation.
    result
        Result of the operation on the example.
    name
        Path of its module.
    module
        Module of the operation, if it is one.
    weights
        Function from the name of one of the module's tensors to its layout.
    run
        Function that applies the operation to another tensor than the first argument.
    ranks
        Numbers of the axes that parameters write, counted over the whole forward pass.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    name: str = ""
    module: Any = None
    weights: Callable[[str], Layout | None] = lambda name: None
    run: Callable[[Tensor], Any] = lambda first: first
    ranks: Iterator[int] = field(default_factory=count)

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument by its position or its name."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def inside(self, path: str, *args: Any) -> Any:
        """Apply the rule of a module within this one.

        Raises
        ------
        UnknownError
            If it has no rule.
        """
        module = self.module.get_submodule(path)
        rule = rule_of_module(module)
        if rule is None:
            raise UnknownError

        def weights(name: str) -> Layout | None:
            return self.weights(f"{path}.{name}")

        return rule(Call(args, {}, None, f"{self.name}.{path}", module, weights, ranks=self.ranks))

    def write_(self, axis: Pieces, role: str = "", name: str = "") -> None:
        """Note that the module, or the one of that name within it, writes an axis."""
        write_(axis, next(self.ranks), f"{self.name}.{name}" if name else self.name, role)

    @property
    def layout(self) -> Layout:
        """Layout of the first argument.

        Raises
        ------
        UnknownError
            If it is not a tensor.
        """
        first = self.get(0, "input")
        if not isinstance(first, Layout):
            raise UnknownError
        return first

    @property
    def layouts(self) -> list[Layout]:
        """Layouts of all tensors among the arguments."""
        return list(layouts_in([*self.args, *self.kwargs.values()]))


Rule = Callable[[Call], Any]
FUNCTIONS: dict[Any, Rule] = {}
METHODS: dict[str, Rule] = {}
MODULES: dict[type[nn.Module], Rule] = {}
# Functions of libraries that are not always installed.
QUALIFIED: dict[str, Rule] = {}


def function_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for torch's functions, operators and methods of these names, including in-place ones."""

    def register(rule: Rule) -> Rule:
        for each in names:
            for name in (each, f"{each}_"):
                METHODS[name] = rule
                found = (getattr(library, name, None) for library in (torch, functional, operator))
                FUNCTIONS.update(dict.fromkeys((function for function in found if function is not None), rule))
        return rule

    return register


def module_rule(*kinds: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register a rule for modules of these types."""

    def register(rule: Rule) -> Rule:
        MODULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def rule_of_module(module: nn.Module) -> Rule | None:
    """Return the rule of a module; a subclass has that of its base if it does not override ``forward``."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return None
    kinds = [kind for kind in type(module).__mro__ if kind in MODULES]
    return MODULES[kinds[0]] if kinds and type(module).forward is kinds[0].forward else None


def rule_of_function(function: Any) -> Rule | None:
    """Return the rule of a function."""
    qualified = f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}"
    return FUNCTIONS.get(function) or QUALIFIED.get(qualified)


def required(layout: Layout | None) -> Layout:
    """Return a layout that a rule cannot do without.

    Raises
    ------
    UnknownError
        If it is None.
    """
    if not isinstance(layout, Layout):
        raise UnknownError
    return layout


def layouts_in(values: Iterable[Any]) -> Iterator[Layout]:
    """Yield all layouts among values and sequences of values."""
    for value in values:
        if isinstance(value, Layout):
            yield value
        elif isinstance(value, tuple | list):
            yield from layouts_in(value)


ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink),
    *(nn.LogSigmoid, nn.Threshold, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)


@module_rule(*ACTIVATIONS)
@function_rule(
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign", "tanh"),
    *("sigmoid", "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "tanhshrink", "logsigmoid"),
    *("threshold", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    *("add", "sub", "mul", "div", "truediv", "floordiv", "floor_divide", "true_divide", "multiply", "divide"),
    *("subtract", "iadd", "isub", "imul", "itruediv", "mod", "remainder", "fmod", "pow", "neg", "negative", "pos"),
    *("positive", "abs", "absolute", "sign", "exp", "log", "square", "sqrt", "rsqrt", "reciprocal", "sin", "cos"),
    *("erf", "clamp", "clip"),
    *("exp2", "expm1", "log1p", "log2", "log10", "round", "floor", "ceil", "trunc", "maximum", "minimum", "where"),
    *("masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and", "logical_or", "addcmul", "lerp"),
    *("isnan", "isinf", "isfinite", "invert", "rsub", "nan_to_num"),
)
def entrywise(call: Call) -> Layout:
    """Each entry of the result depends only on the entries at the same position."""
    return broadcast_(call.layouts)


@function_rule("clone", "contiguous", "detach", "to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu")
def same(call: Call) -> Layout:
    """Keep the layout of the first argument."""
    return call.layout


QUALIFIED["torchvision.ops.stochastic_depth.stochastic_depth"] = same


@module_rule(nn.Softmax, nn.LogSoftmax, nn.Softmin, TopKSoftmax)
@function_rule("softmax", "log_softmax", "softmin")
def along(call: Call) -> Layout:
    """Entries along one dimension depend on each other, symmetrically."""
    return _along(call, call.module.dim if call.module else call.get(1, "dim"))


@function_rule("normalize")
def normalised(call: Call) -> Layout:
    """Entries along one dimension are divided by a norm of all of them."""
    return _along(call, call.get(2, "dim", 1))


def _along(call: Call, chosen: Any) -> Layout:
    if not isinstance(chosen, int):
        raise UnknownError
    dimension = call.layout.dimensions[chosen]
    if isinstance(dimension, Part) and dimension.place == 0:
        plain(dimension)
    return call.layout


@function_rule("mean", "sum", "amax", "amin", "prod", "logsumexp", "nanmean", "nansum")
def reduction(call: Call) -> Layout:
    """Entries along some dimensions become one, in any order."""
    return _without(call.layout, call.get(1, "dim"), call.result)


@function_rule("max", "min", "median")
def choice(call: Call) -> Any:
    """Entries along a dimension become one, and the positions of the chosen ones are returned too."""
    other = call.get(1, "dim", call.kwargs.get("other"))
    if isinstance(other, Layout):
        return broadcast_(call.layouts)
    if other is None:
        return _without(call.layout, None, call.result)
    stay_(call.layout.dimensions[other])
    return (_without(call.layout, other, call.result[0]),) * 2


def _without(layout: Layout, chosen: Any, result: Tensor) -> Layout:
    n = len(layout.dimensions)
    if not isinstance(chosen, int | tuple | list | None):
        raise UnknownError
    places = range(n) if chosen is None else [i % n for i in ([chosen] if isinstance(chosen, int) else chosen)]
    kept = [(i, fixed(1) if i in places else each) for i, each in enumerate(layout.dimensions)]
    return Layout(tuple(each for i, each in kept if result.ndim == n or i not in places))


def _pooling(rank: int) -> Rule:
    def pooling(call: Call) -> Any:
        """Channels remain separate; neighbouring entries in the last dimensions become one."""
        dimensions = call.layout.dimensions
        for dimension in dimensions[-rank:]:
            stay_(dimension)
        first = call.result[0] if isinstance(call.result, tuple) else call.result
        layout = Layout((*dimensions[:-rank], *map(fixed, first.shape[-rank:])))
        return (layout,) * len(call.result) if isinstance(call.result, tuple) else layout

    return pooling


POOLINGS = {rank: _pooling(rank) for rank in (1, 2, 3)}
for _rank, _rule in POOLINGS.items():
    for _kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp"):
        function_rule(f"{_kind}_pool{_rank}d")(_rule)
    for _kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "LP", "ZeroPad"):
        _name = f"{_kind}{_rank}d" if _kind == "ZeroPad" else f"{_kind}Pool{_rank}d"
        module_rule(getattr(nn, _name))(_rule)
