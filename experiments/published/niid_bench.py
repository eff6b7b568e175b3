"""The network and the data of NIID-Bench in Flower's baselines (adap/flower, baselines/niid_bench)."""

from dataclasses import replace

from torch import nn

from fedsim.data import Dataset
from fedsim.data.fashion_mnist import fashion_mnist


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
