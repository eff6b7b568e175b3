"""ResNet-18 for small images, with or without normalisation."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

NORMS: dict[str, Callable[..., nn.Module]] = {
    "none": nn.Identity,
    "group": partial(nn.GroupNorm, 2),
    "batch": nn.BatchNorm2d,
}


class _SmallResNet(ResNet):
    """torchvision's ResNet with the CIFAR stem (3x3 convolution, no pooling) and a chosen width."""

    def __init__(self, channels: int, classes: int, norm: Callable[..., nn.Module], width: int) -> None:
        # ResNet.__init__ fixes the stem and a width of 64; its blocks and forward pass are used as they are.
        nn.Module.__init__(self)
        self._norm_layer = norm
        self.inplanes, self.dilation, self.groups, self.base_width = width, 1, 1, 64
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
        self.layer1 = self._make_layer(BasicBlock, width, 2)
        self.layer2 = self._make_layer(BasicBlock, 2 * width, 2, stride=2)
        self.layer3 = self._make_layer(BasicBlock, 4 * width, 2, stride=2)
        self.layer4 = self._make_layer(BasicBlock, 8 * width, 2, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(
    shape: tuple[int, int, int],
    classes: int,
    *,
    norm: Literal["none", "group", "batch"] = "group",
    width: int = 64,
) -> nn.Module:
    """Build torchvision's ResNet-18 with the CIFAR stem.

    Parameters
    ----------
    norm
        ``none`` (as in the layer-wise connectivity paper), ``group`` (2 groups, Reddi et al. 2021,
        arXiv 2003.00295) or ``batch``.
    width
        Channels of the first stage; the later ones have 2, 4 and 8 times as many. Even with group normalisation.

    Raises
    ------
    ValueError
        If the width is not positive, or odd with group normalisation.

    References
    ----------
    He et al. 2016, Deep residual learning for image recognition, arXiv 1512.03385.
    """
    if width < 1 or (norm == "group" and width % 2):
        raise ValueError(f"width = {width} must be at least 1, and even with norm = 'group'")
    return _SmallResNet(shape[0], classes, NORMS[norm], width)
