"""The training job in BlazeFL: its FedAvg with threads or processes, the usual DataLoader, one worker per core."""

import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from blazefl.contrib import FedAvgBaseServerHandler, FedAvgProcessPoolClientTrainer, FedAvgThreadPoolClientTrainer
from blazefl.core import IPCMode

from benchmarks.child import Answers
from benchmarks.job import BATCH, LR, MOMENTUM, Job, evaluate_plainly, make_model
from benchmarks.machine import processors


class Models:
    """BlazeFL's interface for models."""

    def select_model(self, model_name: str) -> torch.nn.Module:
        """Return a model by its name."""
        return make_model(model_name)


class Data:
    """BlazeFL's interface for data."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def get_dataloader(self, type_: str, cid: int, batch_size: int, generator: torch.Generator) -> Any:
        """Return a client's loader."""
        return self.job.loader(cid, generator)

    def set_dataset(self, type_: str, cid: int, dataset: Any) -> None:
        """Keep the client's changes, of which there are none."""


@cache
def parts(mode: str, model_name: str, clients: int) -> tuple[Any, Any]:
    common: dict[str, Any] = {"model_selector": Models(), "model_name": model_name, "dataset": Data(Job.shared())}
    common |= {"device": "cpu", "num_clients": clients, "batch_size": BATCH, "seed": 0}
    server = FedAvgBaseServerHandler(global_round=10**9, sample_ratio=1.0, **common)
    settings = common | {"epochs": 1, "lr": LR, "num_parallels": processors()}
    if mode == "threads":
        return server, FedAvgThreadPoolClientTrainer(**settings)
    folder = Path(tempfile.mkdtemp())
    settings |= {"share_dir": folder / "share", "state_dir": folder / "state", "ipc_mode": IPCMode.SHARED_MEMORY}
    return server, FedAvgProcessPoolClientTrainer(**settings)


def run_round(mode: str, request: dict[str, Any]) -> dict[str, Any]:
    server, trainer = parts(mode, request["model"], request["clients"])
    trainer.local_process(server.downlink_package(), server.sample_clients())
    for package in trainer.uplink_package():
        server.load(package)
    if request.get("evaluate"):
        evaluate_plainly(server.model)
    return {}


# BlazeFL's own loop has no setting for momentum; the processes that it starts also import this file.
torch.optim.SGD = partial(torch.optim.SGD, momentum=MOMENTUM)  # type: ignore[misc, assignment]

if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    Answers().serve(partial(run_round, sys.argv[1]))
