"""Models: ``MODELS`` maps a name to its function.

A model is a function ``model(shape, classes, *, options) -> nn.Module``: ``shape`` is (channels, height, width) of an
input, and the result maps [n, channels, height, width] to logits [n, classes].
"""

from collections.abc import Callable

from torch import nn

from fedsim.models.cnn import cnn
from fedsim.models.mlp import mlp
from fedsim.models.resnet import resnet18

MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn, "resnet18": resnet18}
