"""The precision in which a model computes in training; its weights and outputs stay what they are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import group_norm
from torch.overrides import TorchFunctionMode

from fedsim.training.settings import Precision


def in_precision(forward: Callable[..., Tensor], precision: Precision) -> Callable[..., Tensor]:
    """Return a forward pass, whose last argument are the inputs, in a precision; its outputs are of float32.

    ``float32`` leaves it as it is; ``bfloat16`` is by autocast, which chooses the operations that lose little.
    """
    if precision == "float32":
        return forward

    def forward_in_bfloat16(*arguments: object) -> Tensor:
        inputs = arguments[-1]
        assert isinstance(inputs, Tensor)
        with computing_in(precision, inputs.device):
            outputs = forward(*arguments)
        return outputs.float()

    return forward_in_bfloat16


@contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Return a context whose operations compute in a precision, as autocast chooses them; of this thread only."""
    if precision == "float32":
        yield
        return
    # Its cache of cast weights would hold those of one call of a function that is differentiated or vectorised.
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False), _GroupNorms():
        yield


class _GroupNorms(TorchFunctionMode):
    """Computes group norms of bfloat16 on a CPU in float32, as autocast itself does on a GPU.

    On a CPU autocast leaves them in bfloat16, where torch 2.15 takes eight times as long for channels-last images with
    few channels.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is group_norm and args[0].dtype == torch.bfloat16 and args[0].device.type == "cpu":
            return function(args[0].float(), *args[1:], **(kwargs or {})).bfloat16()
        return function(*args, **(kwargs or {}))


def gains_from_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16, without which it computes them by those for float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)
    return True
