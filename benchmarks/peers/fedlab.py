"""The training job in FedLab: its serial trainer of SGD clients, the usual DataLoader."""

import logging
from functools import cache
from typing import Any

import torch
from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
from fedlab.contrib.algorithm.basic_server import SyncServerHandler

from benchmarks.child import Answers
from benchmarks.job import BATCH, LR, MOMENTUM, Job, evaluate_plainly, make_model


class Data:
    """FedLab's interface for data."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def get_dataloader(self, client: int, batch_size: int) -> Any:
        """Return a client's loader."""
        return self.job.loader(client)


@cache
def parts(model_name: str, clients: int) -> tuple[SyncServerHandler, SGDSerialClientTrainer]:
    server = SyncServerHandler(make_model(model_name), 10**9, 1.0)
    server.num_clients = clients
    trainer = SGDSerialClientTrainer(make_model(model_name), clients)
    trainer.setup_dataset(Data(Job.shared()))
    trainer.setup_optim(1, BATCH, LR)
    trainer.optimizer = torch.optim.SGD(trainer._model.parameters(), LR, momentum=MOMENTUM)
    return server, trainer


def run_round(request: dict[str, Any]) -> dict[str, Any]:
    server, trainer = parts(request["model"], request["clients"])
    trainer.local_process(server.downlink_package, server.sample_clients())
    for package in trainer.uplink_package:
        server.load(package)
    if request.get("evaluate"):
        evaluate_plainly(server.model)
    return {}


if __name__ == "__main__":
    logging.disable(logging.INFO)
    Answers().serve(run_round)
