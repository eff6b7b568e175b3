"""A small vision transformer."""

import math
from typing import Any

from torch import nn

from fedsim.models.architectures.checks import heads_divide_width, image_shape, positive
from fedsim.models.architectures.convolution import set_input_channels_
from fedsim.models.architectures.experts import mixtures
from fedsim.options import with_options_of


@with_options_of(mixtures)
def vit(
    shape: tuple[int, ...],
    classes: int,
    *,
    patch: int = 4,
    depth: int = 6,
    heads: int = 8,
    width: int = 256,
    mlp: int = 512,
    **experts: Any,
) -> nn.Module:
    """Build torchvision's vision transformer for small images: ``conv_proj``, ``encoder.*``, ``heads.head``.

    Parameters
    ----------
    patch
        Side of a patch in pixels.
    depth, heads
        Number of encoder blocks, and of attention heads in each block.
    width, mlp
        Width of a token, and of the hidden layer in each block.
    **experts
        Options of `fedsim.models.architectures.experts.mixtures`.

    Raises
    ------
    ValueError
        If the inputs are not square images, ``patch`` does not divide their side, a size is not positive, ``heads``
        does not divide ``width``, or an option of experts is out of range.

    References
    ----------
    Dosovitskiy et al. 2021, An image is worth 16x16 words, arXiv 2010.11929.
    """
    channels, height, columns = image_shape("vit", shape)
    positive(patch=patch, depth=depth, heads=heads, width=width, mlp=mlp)
    heads_divide_width(heads, width)
    if height != columns:
        raise ValueError(f"shape = {tuple(shape)}: vit takes square images; crop them, or choose resnet18")
    if height % patch:
        divisors = ", ".join(str(side) for side in range(1, height + 1) if height % side == 0)
        raise ValueError(f"patch = {patch} must divide the images' side of {height}; take one of {divisors}")
    mixed = mixtures(depth, mlp, **experts)
    from torchvision.models.vision_transformer import VisionTransformer  # takes a second, and not every model needs it

    model = VisionTransformer(height, patch, depth, heads, width, mlp, num_classes=classes)
    if channels != 3:
        set_input_channels_(model, channels)
        # As in torchvision's constructor.
        nn.init.trunc_normal_(model.conv_proj.weight, std=math.sqrt(1 / (channels * patch**2)))
        nn.init.zeros_(model.conv_proj.bias)
    for block in sorted(mixed.blocks):
        model.encoder.layers[block].mlp = mixed.block(width, nn.GELU())
    return model
