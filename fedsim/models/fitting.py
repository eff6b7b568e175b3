"""Models that are larger than the memory are refused while they are built, before Linux ends the process for it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fedsim.memory import free_bytes

# By which modules make their tensors.
MAKING = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}


class FittingTensors(TorchFunctionMode):
    """Checks, before a tensor is made, that all that were made so far fit into the memory that was free before."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes, self._free = 0, free_bytes()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Make a tensor without values first, to see how large it is."""
        kwargs = kwargs or {}
        if func in MAKING and kwargs.get("device") is None and self._free is not None:
            self._bytes += func(*args, **{**kwargs, "device": "meta"}).nbytes
            if self._bytes > self._free:
                raise MemoryError(
                    f"the model needs at least {self._bytes:,} bytes of memory, and {self._free:,} are free; choose a "
                    "smaller one"
                )
        return func(*args, **kwargs)
