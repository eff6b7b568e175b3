"""Pictures as Pillow opens them, as arrays of bytes."""

from typing import Literal

import numpy as np
from PIL import Image

Mode = Literal["RGB", "L"]
LARGEST_SIZE = 4096


def check_size(size: int | None) -> None:
    """Check the height and width to which pictures are resized.

    Raises
    ------
    ValueError
        If it is out of range.
    """
    if size is not None and not 1 <= size <= LARGEST_SIZE:
        raise ValueError(f"size = {size} must be from 1 to {LARGEST_SIZE} pixels")


def pixels_of(picture: Image.Image, mode: Mode, size: int | None = None) -> np.ndarray:
    """Return a picture as bytes, shape [channels, height, width].

    Raises
    ------
    ValueError
        If its pixels have more than 8 bits.
    """
    if picture.mode.startswith("I") or picture.mode == "F":
        raise ValueError("its pixels have more than 8 bits; convert it to 8 bits")
    converted = picture.convert(mode)
    if size is not None and converted.size != (size, size):
        converted = converted.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(converted)
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
