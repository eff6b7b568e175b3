"""Networks with one hidden layer of local filters, which positions share or have each to itself."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

KERNEL, STRIDE = 3, 2


class Unshared(nn.Module):
    """A convolution without weight sharing: each position has its own filters."""

    def __init__(self, inputs: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        positions = math.prod((side - KERNEL) // STRIDE + 1 for side in (height, width))
        size = inputs * KERNEL**2
        self.weight = nn.Parameter(torch.empty(positions, channels, size).uniform_(-1, 1) / math.sqrt(size))
        self.bias = nn.Parameter(torch.empty(positions, channels).uniform_(-1, 1) / math.sqrt(size))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of all positions, shape [n, positions, channels]."""
        windows = unfold(images, KERNEL, stride=STRIDE)
        return torch.einsum("nsp,pcs->npc", windows, self.weight) + self.bias


def local_filters(shape: tuple[int, ...], classes: int, *, shared: bool = True, channels: int = 8) -> nn.Module:
    """Build a hidden layer ``local`` of 3x3 filters with stride 2, ReLU and a classifier ``fc``."""
    first: nn.Module = (
        nn.Conv2d(shape[0], channels, KERNEL, STRIDE) if shared else Unshared(shape[0], channels, *shape[1:])
    )
    features = math.prod((side - KERNEL) // STRIDE + 1 for side in shape[1:]) * channels
    parts = OrderedDict(local=first, relu=nn.ReLU(), flatten=nn.Flatten(), fc=nn.Linear(features, classes))
    return nn.Sequential(parts)
