"""Arrays between processes of a machine: they are read where Ray holds them."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import ray.cloudpickle
import torch
from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.federation.engines.ray import RayEngine
from fedsim.strategy.messages import decode, encode

# Workers cannot import the tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.ray

COUNT = 2**18  # of float64: 2 MB


def echoing_app(shared: Mapping[str, torch.Tensor]) -> ClientApp:
    """Clients that send back what they get, and say which of it is in Ray's object store."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        got = {name: decode(message.content.array_records[name])["x"] for name in ("own", "common")} | shared
        metrics = MetricRecord({name: int(in_store(tensor.numpy())) for name, tensor in got.items()})
        answer = {name: encode({"x": tensor}) for name, tensor in got.items()}
        return Message(RecordDict(answer | {"metrics": metrics}), reply_to=message)

    return app


def in_store(array: np.ndarray) -> bool:
    """Return whether an array is read from Ray's object store, which all processes of a machine share, as it is."""
    address, size = array.__array_interface__["data"][0], array.nbytes
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(each, 16) for each in line.partition(" ")[0].split("-"))
        if first <= address < last:
            return "plasma" in line and address + size <= last
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="it reads what Linux says of a process")
def test_large_arrays_are_read_where_they_lie() -> None:
    common, *own = (encode({"x": torch.rand(COUNT, dtype=torch.float64)}) for _ in range(3))
    shared = {"shared": torch.rand(COUNT, dtype=torch.float64)}
    with RayEngine(echoing_app, 2, 1, shared=shared) as engine:
        sent = [
            Message(RecordDict({"own": each, "common": common}), client, MessageType.TRAIN)
            for client, each in enumerate(own)
        ]
        for each, reply in zip(own, engine.send_and_receive(sent), strict=True):
            assert dict(reply.content["metrics"]) == {"own": 1, "common": 1, "shared": 1}
            for name, expected in {"own": decode(each)["x"], "common": decode(common)["x"], **shared}.items():
                array = decode(reply.content.array_records[name])["x"].numpy()
                assert in_store(array)
                assert np.array_equal(array, expected.numpy())
    assert not in_store(shared["shared"].numpy())
