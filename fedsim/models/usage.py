"""How a model uses its tensors, recorded while it runs: their order, and which layer gives the logits."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from fedsim.models.copies import copy_of
from fedsim.models.tensors import tensors_in

# Functions that combine a weight with logits without being what gives them: a scale, a prior, a normalisation.
ELEMENTWISE = {
    *("add", "sub", "rsub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "pow", "lerp"),
    *("radd", "rmul", "rtruediv", "truediv", "iadd", "isub", "imul", "itruediv", "addcmul", "addcdiv"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "prelu", "dropout"),
    *("where", "maximum", "minimum", "clamp", "clip", "masked_fill", "getitem", "index_select", "gather"),
}
WRITTEN_OUT = {"mul", "rmul", "multiply", "sub", "rsub", "subtract"}


@dataclass
class _Operation:
    """One call: the tensors with a weight that it takes, and the operations whose results it takes."""

    name: str
    keys: list[str]
    before: list[int]
    shapes: list[torch.Size]

    def is_product(self, weights: Sequence[torch.Size]) -> bool:
        """Whether it is a product with a weight, or a distance from one, rather than a scale or a shift of its rows."""
        matrices = [shape for shape in weights if len(shape) > 1]
        if self.name in WRITTEN_OUT:  # which a sum over the features makes a product
            return any(shape.numel() > max(shape) for shape in matrices)
        return bool(matrices) and self.name not in ELEMENTWISE

    def sizes(self, examples: int) -> Iterator[int]:
        """Yield the sizes of the results' dimensions, besides that of the examples, which may be the last."""
        for shape in self.shapes:
            yield from shape if examples in shape[1:] and shape[0] != examples else shape[1:]


@dataclass
class Usage:
    """What a model's run on some inputs has shown.

    Parameters
    ----------
    keys
        State-dict keys of the tensors that were used, in the order of their first use.
    outputs
        Number of classes: the size of the output's second dimension.
    examples
        Number of inputs.
    """

    keys: list[str]
    outputs: int
    examples: int
    _operations: list[_Operation]
    _last: int | None

    def sources_of_logits(self, shape_of: Callable[[str], torch.Size]) -> Iterator[tuple[list[str], bool]]:
        """Yield the last products before the output: the keys that each takes, and whether it has all the classes.

        Parameters
        ----------
        shape_of
            Gives the shape of a key's tensor; none for one that is no weight.
        """
        for each in self._last_products(shape_of):
            yield each.keys, self.outputs in each.sizes(self.examples)

    def can_give_logits(self, keys: Collection[str], shape_of: Callable[[str], torch.Size]) -> bool:
        """Whether what is made with one of these tensors has as many entries in a dimension as there are classes.

        The last product before the output may have several for each class, of which the largest is taken.
        """
        for each in self._last_products(shape_of):
            if not set(keys).isdisjoint(each.keys) and any(
                size % self.outputs == 0 for size in each.sizes(self.examples)
            ):
                return True
        own = [each for each in self._operations if not set(keys).isdisjoint(each.keys)]
        return any(self.outputs in each.sizes(self.examples) for each in own)

    def _last_products(self, shape_of: Callable[[str], torch.Size]) -> Iterator[_Operation]:
        waiting, seen = [] if self._last is None else [self._last], set[int]()
        while waiting:
            place = waiting.pop()
            if place in seen:
                continue
            seen.add(place)
            each = self._operations[place]
            if each.is_product([shape_of(key) for key in each.keys]):
                yield each
            else:
                waiting += each.before


def usage_of(model: nn.Module, inputs: Tensor) -> Usage:
    """Run a copy of ``model`` in evaluation mode and return how it uses its tensors.

    Nothing is traced symbolically: what counts are the calls of torch's functions in this run, so that any Python code
    works. Weights inside of compiled modules count as used where their module is called.

    Raises
    ------
    Exception
        Whatever the model raises.
    """
    model = copy_of(model).eval()
    tape = _Tape(model, inputs)
    model = _watched(model, tape)
    devices = [inputs.device] if inputs.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices), tape:
        outputs = model(inputs)
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        return Usage(list(tape.used), 0, len(inputs), tape.operations, None)
    return Usage(list(tape.used), outputs.shape[1], len(inputs), tape.operations, tape.made_by(outputs))


@dataclass
class _Origin:
    """Where a tensor comes from: an operation on the inputs, or weights alone."""

    tensor: Tensor  # held, so that its identity is not reused
    operation: int | None = None
    keys: list[str] = field(default_factory=list)


class _Tape(TorchFunctionMode):
    """Records every call of a torch function: which weights it takes, and which results of earlier calls."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.operations: list[_Operation] = []
        self.used: dict[str, None] = {}  # in order
        # By a tensor's identity.
        self._origins: dict[int, _Origin] = {id(inputs): _Origin(inputs, operation=self._note("inputs", [], [], []))}
        self._names: dict[int, str] = {}
        for key, value in model.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor):
                self._names.setdefault(id(value), key)
                self._origins.setdefault(id(value), _Origin(value, keys=[self._names[id(value)]]))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = _name_of(func)
        # What it changes in place is a result as well.
        changed = [*(args[:1] if name.endswith("_") or name == "setitem" else ()), (kwargs or {}).get("out")]
        self._record(name.rstrip("_"), tensors_in([args, kwargs]), list(tensors_in([result, *changed])))
        return result

    def called(self, args: Any, result: Any, keys: Iterable[str]) -> None:
        """Record the call of a module if no function has given its results, as where its code is compiled."""
        results = list(tensors_in(result))
        if any(id(value) not in self._origins for value in results):
            self._record("call", tensors_in(args), results, keys)

    def made_by(self, value: Tensor) -> int | None:
        """Return the operation whose result a tensor is."""
        origin = self._origins.get(id(value))
        return None if origin is None else origin.operation

    def _record(self, name: str, taken: Iterable[Tensor], results: Sequence[Tensor], own: Iterable[str] = ()) -> None:
        if not results:
            return
        origins = [self._origins[id(value)] for value in taken if id(value) in self._origins]
        used = [key for origin in origins if origin.operation is None for key in origin.keys]
        keys = list(dict.fromkeys([*used, *own]))
        before = list(dict.fromkeys(origin.operation for origin in origins if origin.operation is not None))
        if before:
            self.used |= dict.fromkeys(keys)
            place: int | None = self._note(name, keys, before, [value.shape for value in results])
        else:
            place = None  # made of weights alone, it is as good as a weight
        for value in results:
            if id(value) not in self._names or place is not None:
                self._origins[id(value)] = _Origin(value, place, [] if place is not None else keys)

    def _note(self, name: str, keys: list[str], before: list[int], shapes: list[torch.Size]) -> int:
        self.operations.append(_Operation(name, keys, before, shapes))
        return len(self.operations) - 1


class _Compiled(nn.Module):
    """A compiled module, which takes no hooks, in a module that does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def _watched(module: nn.Module, tape: _Tape, path: str = "") -> nn.Module:
    """Return a module that reports its calls, and those within it, to the tape."""
    keys = [f"{path}.{key}".lstrip(".") for key in module.state_dict()]
    if isinstance(module, torch.jit.ScriptModule):
        module = _Compiled(module)
    else:
        for name, child in module._modules.items():
            module._modules[name] = child and _watched(child, tape, f"{path}.{name}".lstrip("."))
    module.register_forward_hook(lambda _, args, result: tape.called(args, result, keys))
    return module


def _name_of(func: Any) -> str:
    name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
    return name.strip("_") if name.startswith("__") else name
