"""Models of the published tables that fedsim does not have by name."""

from torch import nn


def small_cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two convolutions with 16 and 32 channels, each with max pooling, and a hidden layer of 128 units."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )
