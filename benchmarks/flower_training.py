"""The training job in Flower's own simulation: the app of its PyTorch quickstart with one actor per core."""

import json
import sys
import time
import warnings
from functools import cache
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.child import Answers
from benchmarks.job import CLIENTS, EXAMPLES, Job, evaluate_plainly, make_model, usual_loop_
from benchmarks.machine import processors

client_app = ClientApp()
server_app = ServerApp()


@cache
def shared_job() -> Job:
    """Read the data once per process."""
    return Job.shared()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train as in the quickstart."""
    model = make_model(message.content["config"]["model"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    usual_loop_(model, shared_job().loader(context.node_config["partition-id"]))
    metrics = MetricRecord({"num-examples": EXAMPLES})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


@cache
def strategy_of(clients: int) -> FedAvg:
    return FedAvg(
        fraction_train=clients / CLIENTS, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=CLIENTS
    )


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run a round with Flower's own strategy for each request."""
    answers = Answers()
    answers.give({})
    for server_round, line in enumerate(sys.stdin, 1):
        request: dict[str, Any] = json.loads(line)
        strategy = strategy_of(request["clients"])
        arrays = ArrayRecord(make_model(request["model"]).state_dict())
        start = time.perf_counter()
        config = ConfigRecord({"model": request["model"]})
        sent = strategy.configure_train(server_round, arrays, config, grid)
        replies = list(grid.send_and_receive(sent))
        averaged, _ = strategy.aggregate_train(server_round, replies)
        if failed := [reply for reply in replies if reply.has_error()]:
            raise RuntimeError(f"a client failed: {failed[0].error.reason}")
        if request.get("evaluate") and averaged is not None:
            model = make_model(request["model"])
            model.load_state_dict(averaged.to_torch_state_dict())
            evaluate_plainly(model)
        answers.give({"seconds": time.perf_counter() - start})


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run_simulation(
        server_app,
        client_app,
        CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": processors(), "include_dashboard": False},
        },
    )
