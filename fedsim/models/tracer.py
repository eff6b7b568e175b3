"""The tracer of torch.fx for any model: a function of its inputs, whose other arguments have their defaults."""

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn


class _Value(fx.Proxy):
    """Notes operators that change a tensor in place, which torch.fx takes for those that do not."""


def _in_place(function: Callable[..., Any]) -> Callable[[_Value, Any], Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul"):
    setattr(_Value, f"__{_name}__", _in_place(getattr(operator, _name)))


class Tracer(fx.Tracer):
    """Follows a model's code from its inputs to its outputs; a module that cannot be traced is one operation."""

    # What is computed of buffers alone must not become a constant.
    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for the result of an operation in the model's code."""
        return _Value(node, self)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Return how the model is called: with its inputs only, and with its hooks."""
        return lambda root, inputs: root(inputs), [self.root, self.create_proxy("placeholder", "inputs", (), {})]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return what a module gives for proxies."""
        if m is self.root:
            return forward(*args, **kwargs)
        last = next(iter(reversed(self.graph.nodes)), None)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # a module's code may raise anything on a proxy instead of a tensor
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
