"""Quantity skew: clients of different sizes with the same label distribution."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from partitions.draws import check_alpha, log_gammas, weights_of
from partitions.partition import Partition
from partitions.sizes import check_sizes, lognormal_weights, share_out


def quantity(
    labels: NDArray[np.int64],
    clients: int,
    rng: np.random.Generator,
    *,
    sizes: Literal["dirichlet", "lognormal"] = "dirichlet",
    alpha: float | None = None,
    sigma: float | None = None,
    min_size: int = 2,
) -> Partition:
    """Deal shuffled examples in unequal numbers, from a Dirichlet or a log-normal distribution.

    Parameters
    ----------
    sizes
        Distribution of the clients' shares of the examples that remain after ``min_size``.
    alpha
        Concentration of the shares, for ``sizes = "dirichlet"`` only; smaller is more unequal.
    sigma
        Standard deviation of the logarithm of the shares, for ``sizes = "lognormal"`` only; 0 makes them equal.
    min_size
        Number of examples that every client gets first.

    Raises
    ------
    ValueError
        If an option is missing, out of range, or belongs to the other distribution, or the examples cannot fill the
        clients.

    References
    ----------
    Li et al. 2021, Federated learning on non-IID data silos (NIID-Bench), arXiv 2102.02079;
    log-normal as in the synthetic data of Li et al. 2018 (FedProx), arXiv 1812.06127, whose code draws sizes from
    lognormal(4, 2).
    """
    needed, other = ("alpha", "sigma") if sizes == "dirichlet" else ("sigma", "alpha")
    options = {"alpha": alpha, "sigma": sigma}
    if options[needed] is None or options[other] is not None:
        raise ValueError(
            f"sizes = {sizes!r} needs {needed} and takes no {other} (alpha = {alpha}, sigma = {sigma}); "
            f"set {needed} and remove {other}"
        )
    check_sizes(len(labels), clients, min_size)
    weights = _weights(clients, rng, alpha, sigma)
    counts = min_size + share_out(len(labels) - clients * min_size, weights, rng)
    owners = np.empty(len(labels), dtype=np.int64)
    owners[rng.permutation(len(labels))] = np.repeat(np.arange(clients), counts)
    return Partition.from_owners(owners, clients)


def _weights(clients: int, rng: np.random.Generator, alpha: float | None, sigma: float | None) -> NDArray[np.float64]:
    if alpha is not None:
        check_alpha(alpha)
        return weights_of(log_gammas(np.full(clients, alpha), rng))
    if sigma is None or not 0 <= sigma < np.inf:
        raise ValueError(f"sigma = {sigma} must be at least 0 and finite; 0 makes the sizes equal")
    return lognormal_weights(clients, sigma, rng)
