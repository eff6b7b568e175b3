"""Label skew drawn from a Dirichlet distribution, client by client, after fixing the sizes."""

import numpy as np
from numpy.typing import NDArray

from partitions.draws import check_alpha, log_gammas, weights_of
from partitions.grouping import shuffled
from partitions.partition import Partition
from partitions.sizes import check_sizes, lognormal_weights, share_out


def client_dirichlet(
    labels: NDArray[np.int64],
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float,
    size_sigma: float = 0.0,
    min_size: int = 2,
) -> Partition:
    """Draw each client's label distribution from Dirichlet(alpha * pooled distribution), and its examples from that.

    Parameters
    ----------
    alpha
        Concentration of the whole vector: 0 means one class per client, infinity the pooled distribution. With ten
        equal classes, 1 here is as concentrated as 0.1 for each class.
    size_sigma
        Standard deviation of the logarithm of the clients' sizes; 0 makes them equal to within one.
    min_size
        Number of examples that every client gets first; the rest is distributed by the sizes.

    Raises
    ------
    ValueError
        If an option is out of range, or the examples cannot fill the clients.

    Notes
    -----
    A client draws its examples one by one without replacement; a class that is used up is left out and the other
    shares are scaled to sum 1. The last clients get what the others have left, whatever their own draw, so the
    clients are filled in random order. Every example is used.

    References
    ----------
    Hsu, Qi, Brown 2019, Measuring the effects of non-identical data distribution, arXiv 1909.06335;
    log-normal sizes as in the code of Acar et al. 2021, Federated learning based on dynamic regularization,
    arXiv 2111.04263.
    """
    check_alpha(alpha)
    check_sizes(len(labels), clients, min_size)
    if not 0 <= size_sigma < np.inf:
        raise ValueError(f"size_sigma = {size_sigma} must be at least 0 and finite; 0 makes the sizes equal")
    weights = lognormal_weights(clients, size_sigma, rng)
    sizes = min_size + share_out(len(labels) - clients * min_size, weights, rng)
    examples = shuffled(labels, rng)
    order = rng.permutation(clients)
    drawn = _draw_classes(examples.sizes, sizes[order], alpha, rng)
    owners = np.empty(len(labels), dtype=np.int64)
    owners[examples.indices] = np.repeat(order, sizes[order])[shuffled(drawn, rng).indices]
    return Partition.from_owners(owners, clients)


def _draw_classes(
    class_sizes: NDArray[np.int64], sizes: NDArray[np.int64], alpha: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the class of each drawn example, client after client; all examples are drawn."""
    concentration = min(alpha, 1e100) * (class_sizes / class_sizes.sum())
    left = class_sizes.copy()
    drawn = np.empty(class_sizes.sum(), dtype=np.int64)
    end = 0
    for size in sizes:
        classes = np.flatnonzero(left)
        counts = _draw_counts(left[classes], size, concentration[classes], rng)
        left[classes] -= counts
        drawn[end : end + size] = np.repeat(classes, counts)
        end += size
    return drawn


def _draw_counts(
    available: NDArray[np.int64], size: int, concentration: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return how many of the available examples of each class one client draws.

    Draws of a class that is used up are rejected and repeated, which gives the same distribution as one by one.
    """
    logs = log_gammas(concentration, rng)
    counts = np.zeros_like(available)
    missing = size
    while missing:
        cumulative = np.cumsum(weights_of(logs))
        picks = np.searchsorted(cumulative, rng.random(missing) * cumulative[-1], side="right")
        # A product that rounds up to the sum would point behind the last class.
        picked = np.bincount(np.minimum(picks, len(logs) - 1), minlength=len(logs))
        counts = np.minimum(counts + picked, available)
        logs[counts == available] = -np.inf
        missing = size - int(counts.sum())
    return counts
