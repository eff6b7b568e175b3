"""Draws from Dirichlet distributions of any concentration."""

import numpy as np
from numpy.typing import NDArray


def check_alpha(alpha: float) -> None:
    """Check a concentration.

    Raises
    ------
    ValueError
        If it is not positive and finite.
    """
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha = {alpha} must be greater than 0 and finite; it is the Dirichlet concentration")


def log_gammas(shapes: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the logarithms of gamma variables, which are a Dirichlet draw when scaled to sum 1.

    Notes
    -----
    A gamma variable of shape a is one of shape a + 1 times U^(1/a) with U uniform. For small a it underflows to 0 but
    its logarithm does not, so that any subset of the shares can be scaled to sum 1.
    """
    # Below this the quotient overflows; the largest share is 1 well before.
    shapes = np.maximum(shapes, 1e-300)
    return np.log(rng.standard_gamma(shapes + 1)) - rng.standard_exponential(len(shapes)) / shapes


def weights_of(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the exponentials, scaled so that the largest is 1."""
    return np.exp(logs - logs.max())


def polya_urns(sizes: NDArray[np.int64], clients: int, alpha: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the owners of the examples of each group from a symmetric Dirichlet-multinomial distribution.

    Parameters
    ----------
    sizes
        Number of examples of each group; the groups are independent.

    Returns
    -------
    Client of each example, shape [sum of sizes], group by group. Within a group every order is equally likely.

    Notes
    -----
    The urn of Blackwell and MacQueen 1973: example t of a group, from 0, takes a new client with probability
    K alpha / (K alpha + t), uniformly among K clients, and otherwise the client of one of the t before it. The
    predecessors are drawn for all examples at once and then resolved by pointer jumping, in a logarithmic number of
    steps.
    """
    n = int(sizes.sum())
    positions = np.arange(n)
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    before = positions - first
    mass = clients * min(alpha, 1e100)  # finite, and every example takes a new client
    follows = (rng.random(n) * (mass + before) >= mass) & (before > 0)
    source = np.where(follows, first + (rng.random(n) * before).astype(np.int64), positions)
    moving = np.flatnonzero(follows)
    while len(moving):
        further = source[source[moving]]
        changed = further != source[moving]
        moving, further = moving[changed], further[changed]
        source[moving] = further
    return rng.integers(clients, size=n)[source]
