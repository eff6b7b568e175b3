"""The network and the data of a Flower thesis (samuele-lolli, Aggregation-Federated-Learning-Analysis, task.py)."""

from dataclasses import replace

from torch import nn

from fedsim.data import Dataset
from fedsim.data.fashion_mnist import fashion_mnist


def small_cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two 5 x 5 convolutions with 16 and 32 channels, each with max pooling, and a hidden layer of 128 units."""
    channels, height, width = shape
    pixels = ((height - 4) // 2 - 4) // 2 * (((width - 4) // 2 - 4) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * pixels, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def clothing() -> Dataset:
    """Fashion-MNIST, normalised as the thesis does: by the mean and deviation of MNIST."""
    return replace(fashion_mnist(), mean=(0.1307,), std=(0.3081,))
