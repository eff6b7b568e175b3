"""Doubly stochastic matrices from latent ones, with gradients that do not depend on how they were computed."""

from typing import Any

import torch
from torch import Tensor

# Added to the diagonal of the system of the gradient, which is singular at permutations.
RIDGE = 1e-12


def sinkhorn(latent: Tensor, temperature: float = 1.0, *, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """Return the doubly stochastic matrix ``exp(latent / temperature + u + v)``, of the Sinkhorn operator.

    As the temperature falls it approaches the permutation with the largest sum of latent entries.

    Parameters
    ----------
    latent
        Square matrices, shape [..., n, n]; entry [i, j] is how much place ``i`` wants unit ``j``.
    iterations
        Largest number of normalisations of rows and columns.
    tolerance
        Largest deviation of a row's sum from 1 with which they end; sums of columns are exact.

    Raises
    ------
    ValueError
        If the temperature is not positive.

    Notes
    -----
    The normalisations are those of logarithms. The gradient is that of the limit, by the implicit function theorem: the
    paper solves a system of ``2 n - 1`` equations for it, of which we eliminate those of the rows.

    References
    ----------
    Pena et al. 2023, Re-basin via implicit Sinkhorn differentiation, CVPR 2023, arXiv 2212.12042.
    """
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be positive; matching.assignment has its limit at 0")
    return _Sinkhorn.apply(latent / temperature, iterations, tolerance)


class _Sinkhorn(torch.autograd.Function):
    """The operator at temperature 1."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, iterations: int, tolerance: float) -> Tensor:
        log = latent
        for _ in range(iterations):
            log = log - log.logsumexp(-1, keepdim=True)
            log = log - log.logsumexp(-2, keepdim=True)
            if (log.logsumexp(-1).exp() - 1).abs().max() <= tolerance:
                break
        matrix = log.exp()
        ctx.save_for_backward(matrix)
        return matrix

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # In float64: next to sums of 1, the ridge is lost to rounding in float32.
        matrix = ctx.saved_tensors[0].double()
        weighted = matrix * gradients[0].double()
        rows, columns = matrix.sum(-1), matrix.sum(-2)
        of_rows, of_columns = weighted.sum(-1), weighted.sum(-2)
        # With a of the rows and b of the columns: rows a + P b = of_rows, P' a + columns b = of_columns.
        scaled = matrix.mT / rows[..., None, :]
        size = matrix.shape[-1]
        # Adding the same to all a and subtracting it from all b changes nothing: b is made to sum to 0.
        fixed = torch.full((size, size), 1 / size).to(matrix) + RIDGE * torch.eye(size).to(matrix)
        system = torch.diag_embed(columns) - scaled @ matrix + fixed
        known = of_columns - (scaled @ of_rows[..., None]).squeeze(-1)
        b = torch.linalg.solve(system, known)
        a = (of_rows - (matrix @ b[..., None]).squeeze(-1)) / rows
        gradient = weighted - matrix * (a[..., :, None] + b[..., None, :])
        return gradient.to(gradients[0].dtype), None, None
