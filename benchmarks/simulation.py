"""Rounds of clients that do nothing, or train, in one engine: the child process of `benchmarks.overhead`.

Its only argument is JSON: ``engine`` (local, ray, flower, or loop, a bare loop over the clients), ``clients``,
``taking_part``, ``payload`` (tiny, large or a model of the training job) and ``work`` (nothing or training).
"""

import json
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from benchmarks import job as jobs
from benchmarks.child import Answers
from benchmarks.job import Job
from benchmarks.machine import processors
from fedsim.config import EngineConfig
from fedsim.models.architectures.resnet import resnet18
from fedsim.models.params import Params, load_state_, state_of
from fedsim.training import SGD, LocalPlan, train_

SETTINGS = SGD(batch_size=jobs.BATCH, lr=jobs.LR, momentum=jobs.MOMENTUM)


def make_payload(name: str) -> nn.Module:
    """Return a model with 10 or 11.2 million parameters, or one of the training job."""
    if name == "tiny":
        return nn.Linear(9, 1)
    return resnet18((3, 32, 32), 10, norm="group") if name == "large" else jobs.make_model(name)


def make_app(payload: str, work: str) -> ClientApp:
    """Return clients that send back what they received, perhaps after training it."""
    app = ClientApp()

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"]
        if work == "training":
            model = own_model(payload)
            model.load_state_dict(arrays.to_torch_state_dict())
            train_one(model, int(context.node_config["partition-id"]))
            arrays = ArrayRecord(model.state_dict())
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


_own = threading.local()


def own_model(payload: str) -> nn.Module:
    """Return this thread's model."""
    if not hasattr(_own, "model"):
        torch.set_num_threads(1)
        _own.model = make_payload(payload)
    return _own.model


@cache
def examples(client: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a client's data, once per process."""
    return Job.shared().channels_last(client)


def train_one(model: nn.Module, client: int) -> None:
    """Train one client for a round."""
    train_(model, *examples(client), LocalPlan(), SETTINGS, np.random.default_rng(client))


def in_loop(request: dict[str, Any], answers: Answers) -> None:
    """Train one client after the other on one thread per processor, and nothing else."""
    initial = state_of(make_payload(request["payload"]))
    torch.set_num_threads(1)

    def train(client: int) -> None:
        model = own_model(request["payload"])
        load_state_(model, initial)
        train_one(model, client)

    with ThreadPoolExecutor(processors()) as pool:
        answers.serve(lambda _: {"clients": len(list(pool.map(train, range(request["taking_part"]))))})


def in_fedsim(request: dict[str, Any], answers: Answers) -> None:
    """Run rounds of fedsim's strategy ``full`` as a run does."""
    from fedsim.federation.engines import make_engine
    from fedsim.strategy import Strategy

    model = make_payload(request["payload"])
    strategy = Strategy(model, participation=request["taking_part"] / request["clients"])
    initial: Params = {key: value.clone() for key, value in state_of(model).items()}
    app = partial(make_app, request["payload"], request["work"])
    with make_engine(EngineConfig(name=request["engine"]), app, request["clients"]) as engine:
        strategy.set_global_model(initial)
        rounds = iter(range(1, 10**9))

        def run_round(_: dict[str, Any]) -> dict[str, Any]:
            server_round = next(rounds)
            sent = list(strategy.configure_train(server_round, strategy.arrays, ConfigRecord(), engine))
            received = strategy.receive(server_round, engine.send_and_receive(sent), in_order=True)
            strategy.step(server_round, received)
            return {"clients": len(received.updates)}

        answers.serve(run_round)


def in_flower(request: dict[str, Any], answers: Answers) -> None:
    """Run rounds of Flower's own FedAvg in its own simulation, with one actor per processor."""
    from flwr.simulation import run_simulation

    clients, taking_part = request["clients"], request["taking_part"]
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(taking_part / clients, 0.0, min_train_nodes=taking_part, min_available_nodes=clients)
        state = {"arrays": ArrayRecord(make_payload(request["payload"]).state_dict())}
        rounds = iter(range(1, 10**9))

        def run_round(_: dict[str, Any]) -> dict[str, Any]:
            server_round = next(rounds)
            sent = strategy.configure_train(server_round, state["arrays"], ConfigRecord(), grid)
            replies = list(grid.send_and_receive(sent))
            state["arrays"], _ = strategy.aggregate_train(server_round, replies)
            return {"clients": sum(not reply.has_error() for reply in replies)}

        answers.serve(run_round)

    run_simulation(
        server,
        _client_app_of(request),
        clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": processors(), "include_dashboard": False},
        },
    )


def _client_app_of(request: dict[str, Any]) -> ClientApp:
    return make_app(request["payload"], request["work"])


def main() -> None:
    """Serve the engine that the argument names."""
    request = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    engines: dict[str, Callable[[dict[str, Any], Answers], None]] = {
        "loop": in_loop,
        "local": in_fedsim,
        "ray": in_fedsim,
        "flower": in_flower,
    }
    engines[request["engine"]](request, Answers())
