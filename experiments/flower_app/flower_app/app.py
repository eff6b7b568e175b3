"""A plain Flower app: clients train on scikit-learn's digits, the server averages one layer group with LayerSet."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from sklearn.datasets import load_digits
from torch import nn

from strategies import LayerSet

server = ServerApp()
client = ClientApp()


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def load_data(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    own = slice(int(context.node_config["partition-id"]), None, int(context.node_config["num-partitions"]))
    digits = load_digits()
    return torch.tensor(digits.data[own] / 16).float(), torch.tensor(digits.target[own])


def restore(message: Message, context: Context) -> nn.Module:
    """Return the client's own model with the layers that came from the server."""
    model = make_model()
    own = context.state.array_records.get("model", ArrayRecord()).to_torch_state_dict()
    model.load_state_dict(own | message.content["arrays"].to_torch_state_dict())
    return model


@client.train()
def train(message: Message, context: Context) -> Message:
    model, (inputs, targets) = restore(message, context), load_data(context)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    context.state["model"] = ArrayRecord(model.state_dict())
    upload = {key: context.state["model"][key] for key in message.content["config"]["upload"]}
    metrics = MetricRecord({"num-examples": len(targets)})
    return Message(RecordDict({"arrays": ArrayRecord(upload), "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    model, (inputs, targets) = restore(message, context), load_data(context)
    accuracy = (model(inputs).argmax(1) == targets).float().mean().item()
    metrics = MetricRecord({"num-examples": len(targets), "accuracy": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    model = make_model()
    strategy = LayerSet(model, shared=str(context.run_config["shared"]), min_available_nodes=2)
    strategy.start(grid, ArrayRecord(model.state_dict()), int(context.run_config["num-server-rounds"]))
