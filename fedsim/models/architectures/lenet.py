"""LeNet-5 in its usual modern form."""

from collections import OrderedDict

from torch import nn

from fedsim.models.architectures.checks import image_shape


def lenet5(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build LeNet-5, two 5x5 convolutions and three linear layers: ``conv1``, ``conv2``, ``fc1``, ``fc2``, ``fc3``.

    Images with a side shorter than 32 get a border of two pixels, as the 28x28 digits of the paper. Differences from
    the paper, as in most implementations today: ReLU for tanh, max pooling for trained subsampling, every map of
    ``conv2`` connected to all maps before it, and a linear classifier for radial basis functions.

    Raises
    ------
    ValueError
        If the inputs are not images, or smaller than 12x12.

    References
    ----------
    LeCun et al. 1998, Gradient-based learning applied to document recognition, Proc. IEEE 86(11).
    """
    channels, height, width = image_shape("lenet5", shape, smallest=12)
    border = 2 if min(height, width) < 32 else 0
    rows, columns = (((side + 2 * border - 4) // 2 - 4) // 2 for side in (height, width))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, 5, padding=border),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * rows * columns, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, classes),
        )
    )
