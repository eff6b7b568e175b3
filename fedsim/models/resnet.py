"""ResNet-18 for small images, with or without normalisation."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

NORMS: dict[str, Callable[..., nn.Module]] = {
    "none": nn.Identity,
    "group": partial(nn.GroupNorm, 2),
    "batch": nn.BatchNorm2d,
}


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
    from torchvision.models.resnet import BasicBlock, ResNet  # takes a second, and only this model needs it

    # ResNet's constructor fixes the stem and a width of 64, so both are put in place afterwards.
    model = ResNet(BasicBlock, [1, 1, 1, 1], classes, norm_layer=NORMS[norm])
    model.inplanes = width
    model.conv1 = nn.Conv2d(shape[0], width, 3, padding=1, bias=False)
    model.bn1 = NORMS[norm](width)
    model.maxpool = nn.Identity()
    for stage in range(4):
        blocks = model._make_layer(BasicBlock, width * 2**stage, 2, stride=1 if stage == 0 else 2)
        setattr(model, f"layer{stage + 1}", blocks)
    model.fc = nn.Linear(8 * width, classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
