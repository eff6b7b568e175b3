"""The two-convolution network of the FedAvg paper."""

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from fedsim.models.architectures.checks import image_shape


class CNN(nn.Module):
    """Two 5x5 convolutions with 2x2 max pooling, a hidden layer of 512 and a classifier.

    1,663,370 parameters for 28x28 inputs with one channel and 10 classes, as in the paper.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.fc1 = nn.Linear(64 * (height // 4) * (width // 4), 512)
        self.fc2 = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape [n, classes]."""
        # ReLU is monotonic, so it commutes with the maximum; after pooling it costs a quarter.
        x = relu(max_pool2d(self.conv1(x), 2))
        x = relu(max_pool2d(self.conv2(x), 2))
        return self.fc2(relu(self.fc1(x.flatten(1))))


def cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build the two-convolution network of the FedAvg paper: ``conv1``, ``conv2``, ``fc1``, ``fc2``.

    Raises
    ------
    ValueError
        If the inputs are not images, or smaller than 4x4.

    References
    ----------
    McMahan et al. 2017, Communication-efficient learning of deep networks, arXiv 1602.05629.
    """
    # Each of the two poolings halves the image.
    return CNN(image_shape("cnn", shape, smallest=4), classes)
