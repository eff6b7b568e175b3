"""The multilayer perceptron of the paper, with layer normalisation."""

import math
from collections import OrderedDict

from torch import nn


def normed_mlp(shape: tuple[int, ...], classes: int, *, hidden: tuple[int, ...] = (256, 256, 256)) -> nn.Module:
    """Build linear layers ``fc1``, ``fc2``, ... with layer normalisation and GELU between them (arXiv 2405.20231)."""
    widths = [math.prod(shape), *hidden, classes]
    modules: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i in range(1, len(widths)):
        modules[f"fc{i}"] = nn.Linear(widths[i - 1], widths[i])
        if i < len(widths) - 1:
            modules[f"norm{i}"] = nn.LayerNorm(widths[i])
            modules[f"gelu{i}"] = nn.GELU()
    return nn.Sequential(modules)
