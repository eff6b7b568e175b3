"""One operation of a model: its inputs, its weights, and how it is run."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import fx, nn
from torch.func import functional_call
from torch.nn.functional import embedding, linear

from fedsim.models.params import Params


class NotTraceableError(Exception):
    """A model that cannot be written as a graph of operations that take examples one by one."""


class Entry(NamedTuple):
    """One of the weights of an operation."""

    name: str
    key: str
    part: int


@dataclass(frozen=True)
class Operation:
    """One operation of a model; its weights are passed to each run.

    Parameters
    ----------
    inputs
        Positions of the operations whose results it takes, with 0 for the model's input.
    parts
        Positions of the model's parts that hold its weights.
    entries
        Its own weights: the name in the module, the state-dict key, and which of ``parts`` holds it.
    affine
        Whether its result is an affine function of its weights, so that a mix of weights gives a mix of results.
    frozen
        Whether its module has tensors, of which none is among its weights.
    stackable
        Whether the batches of several models may go through it as one.
    per_example
        Whether its result has one row per example.
    size
        Bytes of the result per example, before the tail.
    kind
        Type of its module, if it is one.
    tail
        Operations of one input without weights, applied to the result before any other operation takes it.
    """

    node: fx.Node
    inputs: tuple[int, ...]
    parts: tuple[int, ...]
    entries: tuple[Entry, ...]
    kind: type[nn.Module] | None = None
    affine: bool = False
    frozen: bool = False
    stackable: bool = False
    per_example: bool = False
    size: float = 0.0
    tail: tuple["Operation", ...] = ()

    def run(self, root: nn.Module, arguments: Sequence[Any], weights: Params) -> Any:
        """Return the result for the results of its inputs.

        Parameters
        ----------
        root
            A copy of the model that no other thread uses.
        weights
            Entries of the operation, by their names in its module.
        """
        values = dict(zip(self.node.all_input_nodes, arguments, strict=True))
        args = fx.map_arg(self.node.args, values.__getitem__)
        kwargs: Any = fx.map_arg(self.node.kwargs, values.__getitem__)
        target: Any = self.node.target
        if self.node.op == "call_module":
            return _call(root.get_submodule(target), args, kwargs, weights)
        if self.node.op == "get_attr":
            return weights[""] if weights else operator.attrgetter(target)(root)
        if self.node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def run_with_tail(self, root: nn.Module, arguments: Sequence[Any], weights: Params) -> Any:
        """Return the result after the tail, as other operations take it."""
        return self.finish(root, self.run(root, arguments, weights))

    def finish(self, root: nn.Module, value: Any) -> Any:
        """Apply the tail to a result."""
        for each in self.tail:
            value = each.run(root, [value], {})
        return value

    @property
    def finished_size(self) -> float:
        """Bytes of the result per example after the tail."""
        return self.tail[-1].size if self.tail else self.size


def weights_only(operations: Sequence[Operation], root: nn.Module) -> list[Operation]:
    """Return operations without the buffers among their entries, which nothing trains."""
    parameters = {key for key, _ in root.named_parameters(remove_duplicate=False)}
    return [
        replace(each, entries=tuple(entry for entry in each.entries if entry.key in parameters)) for each in operations
    ]


def is_plain(module: nn.Module) -> bool:
    """Return whether a module of torch does what its type does, with its own weight and bias: it has no hooks."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and "weight" in module._parameters and "forward" not in vars(module)


def _call(module: nn.Module, args: Any, kwargs: Any, weights: Params) -> Any:
    if not weights:  # it has none, or frozen ones
        return module(*args, **kwargs)
    if not is_plain(module):
        return functional_call(module, weights, args, kwargs)
    # Calling torch's function costs less than putting the weights into the module.
    if type(module) is nn.Linear:
        return linear(args[0], weights.get("weight", module.weight), weights.get("bias", module.bias))
    if type(module) is nn.Conv2d:
        return module._conv_forward(args[0], weights.get("weight", module.weight), weights.get("bias", module.bias))
    if type(module) is nn.Embedding and module.max_norm is None:
        return embedding(args[0], weights["weight"])
    return functional_call(module, weights, args, kwargs)
