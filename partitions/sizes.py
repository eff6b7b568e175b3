"""How many examples each client gets."""

import numpy as np
from numpy.typing import NDArray


def check_sizes(examples: int, clients: int, min_size: int) -> None:
    """Check that there are enough examples.

    Raises
    ------
    ValueError
        If ``min_size`` is negative, or the examples cannot fill the clients.
    """
    if min_size < 0:
        raise ValueError(f"min_size = {min_size} must be at least 0, the smallest number of examples of a client")
    if clients * min_size > examples:
        raise ValueError(
            f"{clients} clients with at least {min_size} examples each need {clients * min_size} examples "
            f"and there are {examples}; use fewer clients, a smaller min_size or more examples"
        )


def share_out(total: int, weights: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return integers in proportion to the weights that add up to ``total``, shape [weights].

    Parameters
    ----------
    weights
        Non-negative weights, not all 0.

    Notes
    -----
    Largest remainders: all shares are rounded down, and the remaining units go to the largest fractions, ties at
    random.
    """
    scaled = weights / weights.max()
    shares = scaled * (total / scaled.sum())
    counts = np.floor(shares).astype(np.int64)
    order = np.lexsort((rng.random(len(shares)), counts - shares))
    counts[order[: total - counts.sum()]] += 1
    return counts


def lognormal_weights(clients: int, sigma: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw log-normal weights, scaled so that the largest is 1."""
    logs = rng.normal(0, sigma, clients)
    return np.exp(logs - logs.max())
