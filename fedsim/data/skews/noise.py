"""Feature skew by noise."""

import numpy as np
import torch
from torch import Tensor


def noise(inputs: Tensor, client: int, clients: int, rng: np.random.Generator, *, variance: float = 0.1) -> Tensor:
    """Add Gaussian noise to all inputs, with a variance that grows from client to client.

    Parameters
    ----------
    variance
        Variance of the last client's noise, where normalised inputs have a variance of 1; client k of K, from 0, has
        ``variance * (k + 1) / K``. An example has the same noise in every round.

    Raises
    ------
    ValueError
        If the variance is negative, or the inputs are tokens.

    References
    ----------
    Li, Diao, Chen, He 2022, Federated learning on non-IID data silos, arXiv 2102.02079, section IV-B.
    """
    if not 0 <= variance < np.inf:
        raise ValueError(f"variance = {variance} must be at least 0 and finite")
    if not inputs.is_floating_point():
        raise ValueError("noise needs numeric inputs, and these are tokens; use another skew")
    deviation = float(np.sqrt(variance * (client + 1) / clients))
    drawn = rng.standard_normal(tuple(inputs.shape), dtype=np.float32)
    return inputs + deviation * torch.from_numpy(drawn).to(inputs.device)
