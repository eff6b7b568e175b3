"""A network whose average fails through batch normalisation, however well units are matched."""

from torch import nn


def batch_norm_cnn(shape: tuple[int, ...], classes: int, width: int = 16) -> nn.Module:
    """Four 3x3 convolutions with batch normalisation, two of ``width`` and two of twice as many channels."""
    channels = shape[0]

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(channels, width),
        *block(width, width),
        nn.MaxPool2d(2),
        *block(width, 2 * width),
        *block(2 * width, 2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )
