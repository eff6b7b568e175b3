"""Multilayer perceptron."""

import math
from collections import OrderedDict

from torch import nn


def mlp(shape: tuple[int, ...], classes: int, *, hidden: tuple[int, ...] = (200, 200)) -> nn.Module:
    """Build fully connected layers with ReLU between them: ``fc1``, ``fc2``, ...

    It takes inputs of any shape and flattens them.

    Parameters
    ----------
    hidden
        Width of each hidden layer; the default is the 2NN of McMahan et al.

    Raises
    ------
    ValueError
        If a width is not positive.

    References
    ----------
    McMahan et al. 2017, Communication-efficient learning of deep networks, arXiv 1602.05629.
    """
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden = {list(hidden)}: each width must be at least 1")
    widths = [math.prod(shape), *hidden, classes]
    modules: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i in range(1, len(widths)):
        modules[f"fc{i}"] = nn.Linear(widths[i - 1], widths[i])
        if i < len(widths) - 1:
            modules[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(modules)
