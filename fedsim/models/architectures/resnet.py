"""ResNet-18 for small images, with or without normalisation."""

from torch import nn

from fedsim.models.architectures.checks import image_shape
from fedsim.models.architectures.convolution import initialise_convolutions_
from fedsim.models.architectures.norm import NORMS, Norm


def resnet18(shape: tuple[int, ...], classes: int, *, norm: Norm = "group", width: int = 64) -> nn.Module:
    """Build torchvision's ResNet-18 with the CIFAR stem.

    Parameters
    ----------
    norm
        Kind of normalisation: ``none`` (as in the layer-wise connectivity paper), ``group`` (2 groups, Reddi et al.
        2021, arXiv 2003.00295), ``batch``, ``layer`` (one group) or ``frozen-batch``.
    width
        Channels of the first stage; the others have 2, 4 and 8 times as many. Must be even with group normalisation.

    Raises
    ------
    ValueError
        If the inputs are not images, or the width is not positive, or odd with group normalisation.

    References
    ----------
    He et al. 2016, Deep residual learning for image recognition, arXiv 1512.03385.
    """
    channels = image_shape("resnet18", shape)[0]
    if width < 1 or (norm == "group" and width % 2):
        raise ValueError(f"width = {width} must be at least 1, and even with norm = 'group'")
    from torchvision.models.resnet import BasicBlock, ResNet  # takes a second, and not every model needs it

    # ResNet's constructor fixes the stem and a width of 64, so both are replaced afterwards.
    model = ResNet(BasicBlock, [1, 1, 1, 1], classes, norm_layer=NORMS[norm])
    model.inplanes = width
    model.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    model.bn1 = NORMS[norm](width)
    model.maxpool = nn.Identity()
    for stage in range(4):
        blocks = model._make_layer(BasicBlock, width * 2**stage, 2, stride=1 if stage == 0 else 2)
        setattr(model, f"layer{stage + 1}", blocks)
    model.fc = nn.Linear(8 * width, classes)
    initialise_convolutions_(model)
    return model
