"""The training job in fluke: its FedAvg server and clients, its own loader over tensors in memory."""

from functools import cache
from typing import Any

import torch
from fluke import FlukeENV
from fluke.client import Client
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader
from fluke.server import Server

from benchmarks.child import Answers
from benchmarks.job import BATCH, CLASSES, LR, MOMENTUM, Job, evaluate_plainly, make_model


@cache
def parts(model_name: str, clients: int) -> Server:
    FlukeENV().set_device("cpu")
    FlukeENV().set_eval_cfg(pre_fit=False, post_fit=False, server=False, locals=False)
    job, members = Job.shared(), []
    for index in range(clients):
        data = FastDataLoader(*job.tensors(index), num_labels=CLASSES, batch_size=BATCH, shuffle=True)
        optimizer = OptimizerConfigurator({"name": "SGD", "lr": LR, "momentum": MOMENTUM})
        members.append(Client(index, data, None, optimizer, torch.nn.CrossEntropyLoss(), local_epochs=1))
    server = Server(make_model(model_name), None, members, weighted=True)
    for member in members:
        member.set_channel(server.channel)
    return server


def run_round(request: dict[str, Any]) -> dict[str, Any]:
    server = parts(request["model"], request["clients"])
    chosen = server.get_eligible_clients(1.0)
    server.broadcast_model(chosen)
    for client in chosen:
        client.local_update(1)
    server.aggregate(chosen, server.receive_client_models(chosen, state_dict=False))
    if request.get("evaluate"):
        evaluate_plainly(server.model)
    return {}


if __name__ == "__main__":
    Answers().serve(run_round)
