"""A network whose layers all have the same power in a common factor of their weights: without biases and norms."""

import math
from collections import OrderedDict

from torch import nn


def mlp_without_biases(shape: tuple[int, ...], classes: int, width: int = 128) -> nn.Module:
    """Three hidden layers of ``width`` units with ReLU, ``fc1`` to ``fc4``, without biases."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, inputs in enumerate((math.prod(shape), width, width), start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, width, bias=False)
        layers[f"relu{number}"] = nn.ReLU()
    layers["fc4"] = nn.Linear(width, classes, bias=False)
    return nn.Sequential(layers)
