"""Feature skew by rotation."""

import numpy as np
import torch
from torch import Tensor


def rotation(
    inputs: Tensor,
    client: int,
    clients: int,
    rng: np.random.Generator,
    *,
    degrees: tuple[float, ...] = (0.0, 90.0, 180.0, 270.0),
) -> Tensor:
    """Rotate all images of client k by the k-th angle; the angles repeat.

    Parameters
    ----------
    degrees
        Angles, counter-clockwise. Quarter turns are exact; others are bilinear, with the mean colour in the corners.

    Raises
    ------
    ValueError
        If there is no angle, or the inputs are not images.

    References
    ----------
    Rotated clients as in Ghosh et al. 2020, An efficient framework for clustered federated learning, arXiv 2006.04088.
    """
    if not degrees or not np.isfinite(degrees).all():
        raise ValueError(f"degrees = {list(degrees)} must be one or more finite angles")
    if inputs.ndim != 4:
        raise ValueError(f"rotation needs images, not inputs of shape {tuple(inputs.shape[1:])}; use another skew")
    angle = degrees[client % len(degrees)] % 360
    square = inputs.shape[2] == inputs.shape[3]
    if angle % 180 == 0 or (angle % 90 == 0 and square):
        return torch.rot90(inputs, int(angle // 90), (2, 3)) if angle else inputs
    from torchvision.transforms.functional import InterpolationMode, rotate  # takes a second, only other angles need it

    return rotate(inputs, angle, InterpolationMode.BILINEAR)
