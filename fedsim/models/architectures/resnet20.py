"""The ResNet-20 for CIFAR."""

from collections import OrderedDict

from torch import nn

from fedsim.models.architectures.checks import image_shape, positive
from fedsim.models.architectures.convolution import initialise_convolutions_
from fedsim.models.architectures.norm import NORMS, Norm


def resnet20(shape: tuple[int, ...], classes: int, *, norm: Norm = "group", width: int = 1) -> nn.Module:
    """Build the ResNet-20 for CIFAR: ``conv1``, three stages ``layer1`` to ``layer3`` of three blocks each, ``fc``.

    The shortcut of a stage's first block is a strided 1x1 convolution with normalisation (the paper's option B), as
    in torchvision's ResNets. The paper's CIFAR networks have option A, zeros for the new channels, with 2,752 fewer
    parameters.

    Parameters
    ----------
    norm
        Kind of normalisation: ``none``, ``batch`` (as in the paper), ``group`` (2 groups), ``layer`` (one group) or
        ``frozen-batch``.
    width
        Factor for the stages' 16, 32 and 64 channels.

    Raises
    ------
    ValueError
        If the inputs are not images, or the width is not positive.

    References
    ----------
    He et al. 2016, Deep residual learning for image recognition, arXiv 1512.03385, section 4.2.
    """
    channels = image_shape("resnet20", shape)[0]
    positive(width=width)
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 16 * width, 3, padding=1, bias=False),
            bn1=NORMS[norm](16 * width),
            relu=nn.ReLU(inplace=True),
            layer1=_stage(16 * width, 16 * width, 1, norm),
            layer2=_stage(16 * width, 32 * width, 2, norm),
            layer3=_stage(32 * width, 64 * width, 2, norm),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(64 * width, classes),
        )
    )
    initialise_convolutions_(model)
    return model


def _stage(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock  # takes a second, and not every model needs it

    shortcut = None
    if inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), NORMS[norm](outputs))
    first = BasicBlock(inputs, outputs, stride, shortcut, norm_layer=NORMS[norm])
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, norm_layer=NORMS[norm]) for _ in range(2)))
