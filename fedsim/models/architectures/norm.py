"""Kinds of normalisation of the convolutional models."""

from collections.abc import Callable
from functools import partial
from typing import Literal, Self

from torch import nn

Norm = Literal["none", "batch", "group", "layer", "frozen-batch"]


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics never change, not even in training mode; scale and shift are trained.

    In a new model the mean is 0 and the variance 1, so it only scales and shifts; in a model loaded from a checkpoint
    with batch normalisation, it keeps that checkpoint's statistics. `torchvision.ops.FrozenBatchNorm2d` has
    no trainable parameters.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.eval()  # a new module is in training mode until train() is called

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def reset_running_stats(self) -> None:
        """Keep the statistics, also where those of other layers are recomputed."""


NORMS: dict[Norm, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "batch": nn.BatchNorm2d,
    # Two groups, Reddi et al. 2021, arXiv 2003.00295.
    "group": partial(nn.GroupNorm, 2),
    # One group: over all channels and positions of an example. Flax's LayerNorm, in Git Re-Basin (arXiv 2209.04836),
    # is over the channels of each position.
    "layer": partial(nn.GroupNorm, 1),
    "frozen-batch": FrozenBatchNorm2d,
}
