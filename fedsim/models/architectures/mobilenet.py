"""MobileNetV2 for small images."""

from torch import nn

from fedsim.models.architectures.checks import image_shape, positive, probability
from fedsim.models.architectures.norm import NORMS, Norm

# Expansion, channels, blocks and stride of each stage: torchvision's, except the second, which has stride 2 there.
STAGES = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def mobilenet(
    shape: tuple[int, ...], classes: int, *, norm: Norm = "group", width: float = 1.0, dropout: float = 0.2
) -> nn.Module:
    """Build torchvision's MobileNetV2 with strides for small images: ``features.*``, then ``classifier.1``.

    The first convolution and the second stage have stride 1 instead of 2, so that 32x32 inputs end as 4x4, not 1x1.

    Parameters
    ----------
    norm
        Kind of normalisation: ``none``, ``batch`` (as in the paper), ``group`` (2 groups), ``layer`` (one group) or
        ``frozen-batch``.
    width
        Factor for all numbers of channels, which are then rounded to multiples of 8.
    dropout
        Share of the classifier's inputs that is dropped in training.

    Raises
    ------
    ValueError
        If the inputs are not images, the width is not positive, or the dropout is not in [0, 1).

    References
    ----------
    Sandler et al. 2018, MobileNetV2: inverted residuals and linear bottlenecks, arXiv 1801.04381.
    """
    from torchvision.models.mobilenetv2 import MobileNetV2  # takes a second, and not every model needs it

    channels = image_shape("mobilenet", shape)[0]
    positive(width=width)
    probability(dropout=dropout)
    model = MobileNetV2(classes, width, STAGES, norm_layer=NORMS[norm], dropout=dropout)
    stem = nn.Conv2d(channels, model.features[0][0].out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out")  # as torchvision's constructor does
    model.features[0][0] = stem
    return model
