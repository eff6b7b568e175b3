"""How messages travel between processes: as few bytes, next to the buffers of their arrays, each only once.

A message is pickled, as in Flower and Ray; it never leaves the machines of the run. The memory of its arrays is not
copied into the bytes: the sender decides how each buffer travels, and the reader uses the memory as it is.
"""

import copyreg
import io
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

from fedsim.strategy.messages import TensorArray

Buffer = np.ndarray  # bytes of one array, shape [size], uint8
Strides = tuple[int, ...]

with warnings.catch_warnings():
    # Arrays out of Ray's object store are read-only, of which torch warns once per process; no code writes to them.
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(bytes(1), np.uint8))


class Packer:
    """Writes messages as bytes and buffers; arrays that share memory share their buffer, also between calls.

    The messages must be kept as long as the packer is used.
    """

    def __init__(self) -> None:
        # Keyed by the memory that they were made of, which is held here so that its address is not reused.
        self._tensors: dict[tuple[Any, ...], tuple[Tensor, Buffer, Strides]] = {}
        self._bytes: dict[int, tuple[bytes, Buffer]] = {}

    def pack(self, messages: list[Message]) -> tuple[bytes, list[Buffer]]:
        """Return messages as bytes, and the buffers in the order in which `unpack` needs them."""
        buffers: list[Buffer] = []
        file = io.BytesIO()
        # A callback that returns nothing keeps the buffer out of the bytes.
        pickler = pickle.Pickler(file, protocol=5, buffer_callback=lambda buffer: None)
        pickler.dispatch_table = {**copyreg.dispatch_table, **self._reducers(buffers)}
        pickler.dump(messages)
        return file.getvalue(), buffers

    def common(self, messages: Iterable[Message]) -> list[Buffer]:
        """Return the buffers that more than one message holds."""
        records: dict[int, ArrayRecord] = {}
        uses: Counter[int] = Counter()
        for message in messages:
            for record in message.content.values() if message.has_content() else ():
                if isinstance(record, ArrayRecord):
                    records[id(record)] = record
                    uses[id(record)] += 1
        found: dict[int, Buffer] = {}
        counts: Counter[int] = Counter()
        for number, record in records.items():
            for array in record.values():
                buffer = self._buffer(array)
                found[id(buffer)] = buffer
                counts[id(buffer)] += uses[number]
        return [buffer for key, buffer in found.items() if counts[key] > 1]

    def _reducers(
        self, buffers: list[Buffer]
    ) -> dict[type, Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]]:
        def apart(buffer: Buffer) -> pickle.PickleBuffer:
            buffers.append(buffer)
            return pickle.PickleBuffer(buffer.data)

        def reduce_tensor(array: TensorArray) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            buffer, strides = self._of_tensor(array.tensor)
            return _tensor_array, (apart(buffer), array.tensor.dtype, array.shape, strides)

        def reduce_array(array: Array) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return _array, (array.dtype, array.shape, array.stype, apart(self._of_bytes(array.data)))

        return {TensorArray: reduce_tensor, Array: reduce_array}

    def _of_tensor(self, tensor: Tensor) -> tuple[Buffer, Strides]:
        key = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if key not in self._tensors:
            flat, strides = _flat(tensor.cpu())
            self._tensors[key] = tensor, flat.view(torch.uint8).numpy(), strides
        return self._tensors[key][1:]

    def _of_bytes(self, data: bytes) -> Buffer:
        if id(data) not in self._bytes:
            self._bytes[id(data)] = data, np.frombuffer(data, np.uint8)
        return self._bytes[id(data)][1]

    def _buffer(self, array: Array) -> Buffer:
        return self._of_tensor(array.tensor)[0] if isinstance(array, TensorArray) else self._of_bytes(array.data)


def unpack(data: bytes, buffers: Sequence[Buffer]) -> list[Message]:
    """Read messages that a `Packer` wrote; their arrays use the buffers' memory and must not be changed in place."""
    return pickle.loads(data, buffers=buffers)


@dataclass(frozen=True)
class Shared:
    """An object whose tensors and arrays all processes of a machine read from the same memory.

    Parameters
    ----------
    data, buffers
        Its pickle, without the memory of its arrays, which Ray's object store shares without copies.
    """

    data: bytes
    buffers: Sequence[Buffer]

    @classmethod
    def of(cls, value: Any) -> Self:
        """Return an object whose tensors are in main memory."""
        buffers: list[Buffer] = []
        file = io.BytesIO()

        def apart(buffer: pickle.PickleBuffer) -> None:
            buffers.append(np.frombuffer(buffer.raw(), np.uint8))

        pickler = pickle.Pickler(file, protocol=5, buffer_callback=apart)
        pickler.dispatch_table = {**copyreg.dispatch_table, Tensor: _reduce_tensor}
        pickler.dump(value)
        return cls(file.getvalue(), buffers)

    def value(self) -> Any:
        """Return the object, which uses the arrays' memory and must not be changed in place."""
        return pickle.loads(self.data, buffers=self.buffers)


def _reduce_tensor(tensor: Tensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    flat, strides = _flat(tensor)
    return _tensor, (pickle.PickleBuffer(flat.view(torch.uint8).numpy().data), tensor.dtype, tensor.shape, strides)


def _flat(tensor: Tensor) -> tuple[Tensor, Strides]:
    """Return a tensor's values as they lie in memory, and its strides over them: both may change rounding."""
    order = sorted(range(tensor.dim()), key=tensor.stride().__getitem__, reverse=True)
    ordered = tensor.permute(order)
    if ordered.is_contiguous():
        return ordered.reshape(-1), tensor.stride()
    ordered = ordered.contiguous()
    strides = dict(zip(order, ordered.stride(), strict=True))
    return ordered.reshape(-1), tuple(strides[dim] for dim in range(tensor.dim()))


def _tensor(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...], strides: Strides) -> Tensor:
    return torch.from_numpy(np.frombuffer(buffer, np.uint8)).view(dtype).as_strided(shape, strides)


def _tensor_array(buffer: Buffer, dtype: torch.dtype, shape: tuple[int, ...], strides: Strides) -> TensorArray:
    return TensorArray(_tensor(buffer, dtype, shape, strides))


def _array(dtype: str, shape: tuple[int, ...], stype: str, buffer: Buffer) -> Array:
    return Array(dtype, shape, stype, bytes(buffer))
