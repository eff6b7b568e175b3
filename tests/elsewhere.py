"""A device without hardware, on which a mistake of devices fails as it would on a GPU.

Its tensors hold their values on the CPU, and say that they are on `DEVICE`: operations on tensors of both devices are
refused where CUDA refuses them, and so are NumPy and Python's own access to their memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from threading import Thread
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

# One of torch's devices that needs no driver; nothing of it is used but the name.
DEVICE = torch.device("lazy")
aten = torch.ops.aten
# Operations that may take tensors of both devices: copies, and places in an indexed tensor.
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor)


class ElsewhereTensor(Tensor):
    """A tensor on `DEVICE`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "ElsewhereTensor":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _apply(operation, args, dict(kwargs or {}))

    def tolist(self) -> Any:
        """Return numbers, as for a tensor of a GPU."""
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return other numbers on the same device."""
        return torch.tensor(data, dtype=dtype or self.dtype, device=self.device)

    def __repr__(self) -> str:
        return f"elsewhere: {self.held!r}"


class _Mode(TorchDispatchMode):
    """Also sees operations without a tensor of the device: those that make one, and copies to it."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _apply(operation, args, dict(kwargs or {}))


@contextmanager
def elsewhere() -> Iterator[None]:
    """Let the device exist for a while."""
    make = torch.tensor

    def tensor(data: Any, *, device: torch.device | None = None, **options: Any) -> Tensor:
        return make(tree_map(_number, data), **options).to(device)

    begin = Thread._bootstrap_inner  # type: ignore[attr-defined]

    def begin_within(thread: Thread) -> None:
        with _Mode():
            begin(thread)

    with (
        _Mode(),
        # A mode is for one thread.
        patch.object(Thread, "_bootstrap_inner", begin_within),
        # It copies to a device without an operation that a mode could see.
        patch.object(torch, "tensor", tensor),
        # Tensors of a subclass cannot be made without a version, which inference mode does not give.
        patch.object(torch, "inference_mode", _without_gradients),
    ):
        yield


def _without_gradients(mode: bool = True) -> Any:
    return torch.no_grad() if mode else nullcontext()


def _apply(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensors = list(_tensors_in((args, tuple(kwargs.values()))))
    inside = any(map(_is_elsewhere, tensors))
    asked = kwargs.get("device")
    if inside and operation not in COPIES:
        _refuse_others(operation, args, tensors)
    goes = inside if asked is None else torch.device(asked).type == DEVICE.type
    if asked is not None and goes:
        kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
    result = operation(*_held(tuple(args)), **{name: _held(value) for name, value in kwargs.items()})
    returned = operation._schema.returns
    if returned and returned[0].alias_info is not None and returned[0].alias_info.is_write:
        return kwargs.get("out", args[0])  # it changes a tensor, and returns it
    return _moved(result) if goes else result


def _refuse_others(operation: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Refuse tensors of the CPU, except single numbers and the places of an index."""
    if operation in INDEXED:
        tensors = [args[0], *(each for each in args[2:3] if isinstance(each, Tensor))]
    elif isinstance(args[0] if args else None, Tensor) and _is_inplace(operation) and not _is_elsewhere(args[0]):
        raise _mixed(operation, tensors)
    if any(not _is_elsewhere(each) and each.ndim for each in tensors):
        raise _mixed(operation, tensors)


def _mixed(operation: Any, tensors: Sequence[Tensor]) -> RuntimeError:
    devices = ", ".join(f"{each.device.type} {list(each.shape)}" for each in tensors)
    return RuntimeError(f"{operation}: expected all tensors to be on the same device, but found {devices}")


def _is_inplace(operation: Callable[..., Any]) -> bool:
    return operation._schema.is_mutable  # type: ignore[attr-defined]


def _is_elsewhere(tensor: Tensor) -> bool:
    return isinstance(tensor, ElsewhereTensor)


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, ElsewhereTensor) else value


def _held(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_held(each) for each in value] if isinstance(value, list) else tuple(map(_held, value))
    return value.held if isinstance(value, ElsewhereTensor) else value


def _moved(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_moved, value))
    return ElsewhereTensor(value) if isinstance(value, Tensor) else value


def _tensors_in(values: Sequence[Any]) -> Iterator[Tensor]:
    for each in values:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from _tensors_in(each)
