"""The network and the data of NIID-Bench in Flower's baselines (adap/flower, baselines/niid_bench)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from fedsim.data import Dataset
from fedsim.data.fashion_mnist import fashion_mnist
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Step
from strategies import scaffold

MOMENTUM = 0.9  # that of `[local]`


def cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two 5 x 5 convolutions with 6 and 16 channels, each with max pooling, and hidden layers of 120 and 84 units."""
    channels, height, width = shape
    pixels = ((height - 4) // 2 - 4) // 2 * (((width - 4) // 2 - 4) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * pixels, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def clothing() -> Dataset:
    """Fashion-MNIST from 0 to 1: the baseline does not normalise it."""
    return replace(fashion_mnist(), mean=(), std=())


class ScaffoldRule(scaffold.ScaffoldRule):
    """Adds c - c_k outside the momentum, as the baseline's optimizer does after each step of SGD."""

    plain_sgd = False

    def gradient(self, step: Step, gradients: Params) -> Params:
        server, own = step.sets["server_control"], step.sets["control"]
        # What the momentum makes of it adds up to c - c_k in each step: to 1 in the first, then to 0.9 + 0.1.
        share = 1.0 if step.number == 0 else 1.0 - MOMENTUM
        corrected = {key: value + share * (server[key] - own[key]) for key, value in gradients.items() if key in server}
        return corrected | {"path/length": -share * torch.ones_like(step.sets["path"]["length"])}


class Scaffold(scaffold.Scaffold):
    """SCAFFOLD with momentum, averaged by examples, as in the baseline.

    Notes
    -----
    Weight decay also shortens the sum of the step sizes, here by 0.05 %.
    """

    client_rule = ScaffoldRule

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        changes, share = self.average(updates, of="control_change"), len(updates) / len(self.clients_that_train)
        self.memory = {key: value + share * changes[key] for key, value in self._control().items()}
        return self.average(updates)
