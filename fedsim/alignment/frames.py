"""The frames of LoRA's factors: ``B R'`` and ``R A`` have the same product for any orthogonal matrix R."""

import torch
from torch import Tensor


def closest_orthogonal(matrix: Tensor, *, reflections: bool = True) -> Tensor:
    """Return the orthogonal matrix that is closest to a square matrix: the solution of a Procrustes problem.

    Parameters
    ----------
    reflections
        Whether its determinant may be -1; if not, it is a rotation.
    """
    u, _, v = torch.linalg.svd(matrix)
    if not reflections and torch.linalg.det(u @ v) < 0:
        v[-1] = -v[-1]
    return u @ v


def rotation_of(product: Tensor, strength: float = 1.0) -> Tensor:
    """Return the rotation closest to a matrix, or one a share of the way to it from none."""
    rotation = closest_orthogonal(product, reflections=False)
    if strength == 1:
        return rotation
    none = torch.eye(len(rotation), dtype=rotation.dtype, device=rotation.device)
    return closest_orthogonal(torch.lerp(none, rotation, strength), reflections=False)


def in_frame_of(first: Tensor, second: Tensor, like_first: Tensor, like_second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors A and B in the frame in which they are closest to others; their product does not change.

    Parameters
    ----------
    first, second
        A, shape [rank, inputs], and B, shape [outputs, rank].
    like_first, like_second
        The others, of the same shapes.
    """
    a, b = first.double(), second.double()
    # Maximises the inner products of both factors with the others together.
    turn = closest_orthogonal(like_first.double() @ a.T + like_second.double().T @ b)
    return (turn @ a).to(first.dtype), (b @ turn.T).to(second.dtype)
