"""Random flips and crops of a client's training images; the numbers of a whole epoch are drawn at once."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each training image, drawn for each epoch; evaluation sees the images unchanged.

    The numbers come from a stream of NumPy, so that they are the same on every device.

    Parameters
    ----------
    flip
        Whether each image is mirrored left to right with probability 1/2.
    crop
        Pixels of padding on each side, from which a window of the image's size is cut at random.
    fill
        Value of the padding in a normalised image, such as that of black, one per channel or one for all (default: 0,
        the mean).

    References
    ----------
    He et al. 2016, Deep residual learning for image recognition, arXiv 1512.03385, section 4.2.
    """

    flip: bool = False
    crop: int = 0
    fill: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return self.flip or self.crop > 0

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw whether each of ``n`` images is mirrored, [n], and its window, [2, n], for `move`."""
        mirrored = rng.random(n) < 0.5 if self.flip else np.zeros(n, dtype=bool)
        window = rng.integers(0, 2 * self.crop + 1, size=(2, n)) if self.crop else np.zeros((2, n), dtype=np.int64)
        return mirrored, window

    def move(self, images: Tensor, mirrored: np.ndarray, window: np.ndarray) -> Tensor:
        """Return the images, shape [n, channels, height, width], mirrored and cropped by numbers from `draw`."""
        n, channels, height, width = images.shape
        columns = torch.arange(width).repeat(n, 1)
        columns = torch.where(torch.from_numpy(mirrored)[:, None], columns.flip(1), columns)
        rows = torch.arange(height).repeat(n, 1)
        if self.crop:
            down, right = torch.from_numpy(window)[:, :, None]
            rows, columns = rows + down, columns + right
            fill = torch.tensor(self.fill or (0.0,), device=images.device, dtype=images.dtype)
            extent = (height + 2 * self.crop, width + 2 * self.crop)
            padded = fill.view(1, -1, 1, 1).expand(n, channels, *extent).clone()
            padded[:, :, self.crop : self.crop + height, self.crop : self.crop + width] = images
            images = padded
        device = images.device
        example = torch.arange(n, device=device)[:, None, None]
        picked = images[example, :, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
        return picked.permute(0, 3, 1, 2)  # the channels of a pixel are adjacent in memory
