"""How far the average of LoRA's factors is from the average of their products, which is what clients have learnt."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def product_error(
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    weights: Sequence[float],
    first: Tensor,
    second: Tensor,
    moved: Tensor | None = None,
) -> tuple[float, float]:
    """Return the distance of a product of factors from the mean product of the clients', and the length of that mean.

    Parameters
    ----------
    firsts, seconds
        Each client's A, shape [rank, inputs], and B, shape [outputs, rank]; ranks may differ.
    weights
        Weight of each client.
    first, second
        The factors that took the place of the clients', such as their averages.
    moved
        What was added to the layer's weight besides, in products of factors, shape [outputs, inputs], if anything.

    Returns
    -------
    distance, size
        Frobenius norms of ``sum p B A - second @ first - moved`` and of ``sum p B A``.
    """
    total = math.fsum(weights)
    left = [weight / total * each.double() for weight, each in zip(weights, seconds, strict=True)]
    right = [each.double() for each in firsts]
    size = _norm(left, right)
    if moved is not None:
        lacking = torch.cat(left, 1) @ torch.cat(right) - second.double() @ first.double() - moved.double()
        return float(torch.linalg.matrix_norm(lacking)), size
    return _norm([*left, -second.double()], [*right, first.double()]), size


def _norm(seconds: Sequence[Tensor], firsts: Sequence[Tensor]) -> float:
    """Return the Frobenius norm of a sum of products, none of which is made."""
    upper, lower = torch.linalg.qr(torch.cat(list(seconds), 1)).R, torch.linalg.qr(torch.cat(list(firsts)).T).R
    return float(torch.linalg.matrix_norm(upper @ lower.T))
