"""Checks of a model's arguments: the shape of an input, and sizes."""

from collections.abc import Sequence

DEEPEST = 1000  # layers, which are built one by one


def image_shape(model: str, shape: Sequence[int], smallest: int = 1) -> tuple[int, int, int]:
    """Return ``shape`` as (channels, height, width).

    Parameters
    ----------
    model
        Name of the model, for the message.
    smallest
        Smallest side of an image in pixels.

    Raises
    ------
    ValueError
        If it is not the shape of an image, or a side is too short.
    """
    if len(shape) != 3:
        raise ValueError(
            f"shape = {tuple(shape)}: {model} takes images, (channels, height, width); "
            "choose mlp for vectors, char-lstm or gpt for token sequences"
        )
    channels, height, width = shape
    if min(height, width) < smallest:
        raise ValueError(
            f"shape = {tuple(shape)}: {height}x{width} is too small for {model}, which needs at least "
            f"{smallest}x{smallest}; choose mlp or larger images"
        )
    return channels, height, width


def sequence_length(model: str, shape: Sequence[int]) -> int:
    """Return the length of a token sequence of this shape.

    Raises
    ------
    ValueError
        If it is not the shape of a sequence.
    """
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(
            f"shape = {tuple(shape)}: {model} takes token sequences, (length,) with a length of at least 1; "
            "choose cnn or resnet18 for images"
        )
    return shape[0]


def positive(**sizes: int | float) -> None:
    """Check that each size is more than 0, and a depth no more than any model has.

    Raises
    ------
    ValueError
        For the first one that is not.
    """
    for name, size in sizes.items():
        if size <= 0:
            raise ValueError(f"{name} = {size} must be {'at least 1' if isinstance(size, int) else 'more than 0'}")
        if name == "depth" and size > DEEPEST:
            raise ValueError(f"depth = {size} must be at most {DEEPEST}")


def probability(**shares: float) -> None:
    """Check that each share is at least 0 and below 1.

    Raises
    ------
    ValueError
        For the first one that is not.
    """
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name} = {share} must be at least 0 and below 1")


def heads_divide_width(heads: int, width: int) -> None:
    """Check that attention heads can share the width equally.

    Raises
    ------
    ValueError
        If they cannot.
    """
    if width % heads:
        raise ValueError(f"width = {width} must be a multiple of heads = {heads}; take {width - width % heads + heads}")
