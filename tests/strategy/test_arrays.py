"""Tensors of any type travel as Flower arrays, in fedsim's engines, as bytes, and to a foreign client."""

import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedsim.strategy.messages import decode, encode, size_bytes

TYPES = [
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.bool,
    torch.uint8,
    torch.int64,
]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_tensor_comes_back_from_bytes_with_its_type_and_values(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0.5, -1.25, 3], [0, 1, 448]]).abs().to(dtype)
    record = encode({"x": tensor, "scalar": tensor[0, 0]})
    sent = recorddict_from_proto(recorddict_to_proto(RecordDict({"arrays": record})))["arrays"]
    assert isinstance(sent, ArrayRecord)
    for found in (decode(record), decode(sent), decode(pickle.loads(pickle.dumps(record)))):
        assert found["x"].dtype == found["scalar"].dtype == dtype
        # Compared as float64 or complex128, since torch cannot compare float8.
        wide = torch.complex128 if dtype.is_complex else torch.float64
        assert torch.equal(found["x"].to(wide), tensor.to(wide))
        assert found["scalar"].shape == ()
    assert size_bytes(record["x"]) == size_bytes(sent["x"]) == 6 * dtype.itemsize


def test_a_foreign_client_reads_bfloat16_as_float32_and_may_answer_so() -> None:
    tensor = torch.tensor([1.5, -2.25]).bfloat16()
    seen = encode({"x": tensor}).to_torch_state_dict()["x"]
    assert seen.dtype == torch.float32
    assert torch.equal(seen, tensor.float())
    assert torch.equal(decode(ArrayRecord({"x": Array(seen.numpy())}))["x"], tensor.float())


def test_an_array_of_numpy_keeps_its_own_type() -> None:
    array = Array(np.arange(3, dtype=np.uint32))
    assert decode(ArrayRecord({"x": array}))["x"].tolist() == [0, 1, 2]
    assert size_bytes(array) == 12
