import subprocess
import sys
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from fedsim.config.making import make_dataset
from fedsim.config.tables import DataConfig
from fedsim.data import Dataset, Examples
from fedsim.federation.engines.grid import RUN, SERVER_NODE, TaskIdentity
from fedsim.federation.engines.packing import Buffer, Packer, Shared, unpack
from fedsim.strategy.messages import TensorArray


@pytest.fixture(autouse=True)
def _as_server() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, SERVER_NODE, 0


def record_of(**tensors: torch.Tensor) -> ArrayRecord:
    record = ArrayRecord()
    for name, tensor in tensors.items():
        record[name] = TensorArray(tensor)
    return record


def message_of(client: int = 0, **records: Any) -> Message:
    return Message(RecordDict(records), client, MessageType.TRAIN, group_id="3")


def there_and_back(messages: list[Message]) -> list[Message]:
    data, buffers = Packer().pack(messages)
    return unpack(data, [read_only(buffer) for buffer in buffers])


def read_only(buffer: Buffer) -> Buffer:
    """Return a copy as it comes out of Ray's object store."""
    return np.frombuffer(buffer.tobytes(), np.uint8)


def tensor_of(message: Message, record: str = "arrays", name: str = "x") -> torch.Tensor:
    array = message.content[record][name]
    assert isinstance(array, TensorArray)
    return array.tensor


def test_all_records_and_metadata_come_back() -> None:
    config = {
        "round": 3,
        "lr": 0.1,
        "name": "adam",
        "flag": True,
        "raw": b"\0\1",
        "keys": ["a", "b"],
        "none": list[int](),
    }
    sent = message_of(
        7,
        config=ConfigRecord(config),
        metrics=MetricRecord({"loss": float("inf"), "n": 4, "history": [0.5, 0.25]}),
        theirs=ArrayRecord([np.arange(6.0).reshape(2, 3)]),
    )
    sent.metadata.__dict__["_message_id"] = "an id"
    [received] = there_and_back([sent])
    assert received.metadata == sent.metadata
    assert received.content == sent.content
    assert type(received.content["theirs"]["0"]) is Array
    assert received.content["theirs"].object_id == sent.content["theirs"].object_id


def test_replies_errors_and_empty_messages_come_back() -> None:
    question = message_of(5)
    answer = Message(RecordDict(), reply_to=question)
    error = Message(Error(2, "client 5 has no luck"), reply_to=question)
    assert there_and_back([]) == []
    received = there_and_back([question, answer, error])
    assert [message.has_content() for message in received] == [True, True, False]
    assert received[2].error == error.error
    assert [message.metadata for message in received] == [question.metadata, answer.metadata, error.metadata]
    assert received[1].metadata.src_node_id == 5


TENSORS = {
    "contiguous": torch.arange(6.0).reshape(2, 3),
    "float64": torch.arange(4, dtype=torch.float64),
    "bfloat16": torch.arange(5).bfloat16(),
    "integers": torch.tensor([[2**62, -1]]),
    "booleans": torch.tensor([True, False]),
    "a number": torch.tensor(3),
    "empty": torch.zeros(0, 3),
    "no dimension has more than one": torch.ones(1, 1, 1, 1),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "channels last": torch.arange(48.0).reshape(2, 4, 3, 2).contiguous(memory_format=torch.channels_last),
    "channels last with one channel": torch.zeros(4, 1, 3, 3).contiguous(memory_format=torch.channels_last),
    "not finite": torch.tensor([float("nan"), float("-inf"), -0.0]),
    "part of a larger one": torch.arange(20.0)[5:9],
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_keeps_its_bits_and_its_layout(name: str) -> None:
    sent = TENSORS[name]
    received = tensor_of(there_and_back([message_of(arrays=record_of(x=sent))])[0])
    assert received.dtype == sent.dtype
    assert received.shape == sent.shape
    assert received.stride() == sent.stride()
    assert received.contiguous().view(torch.uint8).equal(sent.contiguous().view(torch.uint8)) if sent.dim() else True
    assert torch.equal(received.nan_to_num(9), sent.nan_to_num(9))


@pytest.mark.parametrize("sent", [torch.arange(12.0).reshape(3, 4)[:, ::2], torch.arange(2.0)[:, None].expand(2, 5)])
def test_a_tensor_with_gaps_or_repeats_is_sent_without_them(sent: torch.Tensor) -> None:
    data, buffers = Packer().pack([message_of(arrays=record_of(x=sent))])
    assert [buffer.nbytes for buffer in buffers] == [sent.numel() * 4]
    assert torch.equal(tensor_of(unpack(data, buffers)[0]), sent)


def test_what_messages_share_is_written_once_and_stays_shared() -> None:
    arrays, config = record_of(x=torch.ones(1000)), ConfigRecord({"plan": "p" * 1000})
    sent = [message_of(client, arrays=arrays, config=config) for client in range(50)]
    data, buffers = Packer().pack(sent)
    assert [buffer.nbytes for buffer in buffers] == [4000]
    assert len(data) < 1000 + 50 * 200
    received = unpack(data, buffers)
    assert received[0].content["arrays"] is received[49].content["arrays"]
    assert received[0].content["config"] is received[49].content["config"]


def test_arrays_are_not_copied() -> None:
    tensor = torch.ones(3)
    data, buffers = Packer().pack([message_of(arrays=record_of(x=tensor))])
    received = tensor_of(unpack(data, buffers)[0])
    tensor[0] = 5
    assert received.tolist() == [5, 1, 1]


def test_what_several_messages_hold_is_one_buffer_in_every_call() -> None:
    model, own = torch.ones(3), [torch.full((2,), float(client)) for client in range(3)]
    # Records and arrays of their own, as when a strategy writes each message again, over the same memory.
    sent = [message_of(client, arrays=record_of(x=model), own=record_of(x=own[client])) for client in range(3)]
    packer = Packer()
    [common] = packer.common(sent)
    assert common.nbytes == 12
    for client, message in enumerate(sent):
        data, buffers = packer.pack([message])
        assert [buffer is common for buffer in buffers] == [True, False]
        received = unpack(data, buffers)
        assert torch.equal(tensor_of(received[0], "own"), own[client])


def test_parts_of_the_same_memory_are_told_apart() -> None:
    whole = torch.arange(6.0)
    views = {"whole": whole, "start": whole[:3], "matrix": whole.reshape(2, 3), "empty": whole[:0]}
    [received] = there_and_back([message_of(arrays=record_of(**views))])
    for name, view in views.items():
        assert torch.equal(tensor_of(received, name=name), view)


def with_view() -> Dataset:
    """Return a data set with names in a list, and ids that pickle refuses."""
    examples = Examples(torch.arange(12.0).reshape(6, 2), torch.arange(6) % 2)
    names: Any = ["no", "yes"]
    return Dataset("view", examples, examples, names, ids=MappingProxyType({"site": np.arange(6)}))


def test_a_data_set_is_shared_whatever_its_ids_are_in() -> None:
    made = make_dataset(DataConfig(name="tests.federation.test_packing:with_view"))
    found = Shared.of(made).value()
    assert found.classes == ("no", "yes")
    assert found.ids["site"].tolist() == list(range(6))
    assert torch.equal(found.train.inputs, made.train.inputs)


@pytest.mark.slow
def test_nobody_is_warned_that_arrays_are_read_only() -> None:
    script = (
        "import warnings, numpy, torch, fedsim.federation.engines.packing\n"
        "warnings.simplefilter('error')\n"
        "torch.from_numpy(numpy.frombuffer(b'1234', numpy.uint8))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
