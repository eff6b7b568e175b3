"""A small vision transformer."""

import math

from torch import nn

from fedsim.models.architectures.checks import heads_divide_width, image_shape, positive
from fedsim.models.architectures.convolution import set_input_channels_
from fedsim.models.architectures.experts import mixtures


def vit(
    shape: tuple[int, ...],
    classes: int,
    *,
    patch: int = 4,
    depth: int = 6,
    heads: int = 8,
    width: int = 256,
    mlp: int = 512,
    num_experts: int = 0,
    top_k: int = 0,
    num_shared_experts: int = 0,
    expert_width: int = 0,
    moe_blocks: tuple[int, ...] = (),
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
    num_experts
        Number of experts in a block's feed-forward part, weighted by a gate; 0 for blocks without experts.
    top_k
        Number of experts that the gate chooses for each token; 0 for all.
    num_shared_experts
        Number of further experts, which work for every token with weight 1.
    expert_width
        Width of the hidden layer of each expert; 0 for ``mlp``.
    moe_blocks
        Numbers of the blocks with experts, from 0, or from -1 backwards; by default all blocks.

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
    mixed = mixtures(
        depth,
        mlp,
        num_experts=num_experts,
        top_k=top_k,
        num_shared_experts=num_shared_experts,
        expert_width=expert_width,
        moe_blocks=moe_blocks,
    )
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
