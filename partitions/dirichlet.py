"""Label skew drawn from a Dirichlet distribution."""

import numpy as np
from numpy.typing import NDArray

from partitions.partition import Partition


def dirichlet(
    labels: NDArray[np.int64],
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float,
    min_size: int = 10,
    max_draws: int = 1000,
) -> Partition:
    """Deal each class over the clients in shares drawn from Dirichlet(alpha).

    Parameters
    ----------
    alpha
        Concentration: 0.1 gives most clients two or three classes, 10 is close to i.i.d.
    min_size
        Smallest number of examples of a client. The whole partition is drawn anew until it holds.
    max_draws
        How often it is drawn at most.

    Raises
    ------
    ValueError
        If an option is out of range, the examples cannot fill the clients, or no draw reaches ``min_size``.

    Notes
    -----
    A class of n examples with cumulative shares C is cut at floor(C n + u) with one uniform u per class,
    so that each client's expected number is exactly its share times n. Cutting at floor(C n), as is often done,
    hands every remainder to the last client.

    References
    ----------
    Hsu, Qi, Brown 2019, Measuring the effects of non-identical data distribution, arXiv 1909.06335;
    per class over clients as in Yurochkin et al. 2019, arXiv 1905.12022.
    """
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha = {alpha} must be greater than 0 and finite; it is the Dirichlet concentration")
    if min_size < 1:
        raise ValueError(f"min_size = {min_size} must be at least 1")
    if max_draws < 1:
        raise ValueError(f"max_draws = {max_draws} must be at least 1")
    if clients * min_size > len(labels):
        raise ValueError(
            f"{clients} clients with at least {min_size} examples each need {clients * min_size} examples "
            f"and there are {len(labels)}; use fewer clients, a smaller min_size or more examples"
        )
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    best = 0
    for _ in range(max_draws):
        owners = _draw_owners(members, clients, rng, alpha)
        smallest = int(np.bincount(owners, minlength=clients).min())
        if smallest >= min_size:
            return Partition.from_owners(owners, clients)
        best = max(best, smallest)
    raise ValueError(
        f"none of {max_draws} Dirichlet draws with alpha = {alpha} gave each of {clients} clients "
        f"min_size = {min_size} examples (the best gave {best}); use a smaller min_size, a larger alpha or fewer "
        "clients"
    )


def _draw_owners(
    members: list[NDArray[np.int64]], clients: int, rng: np.random.Generator, alpha: float
) -> NDArray[np.int64]:
    owners = np.empty(sum(map(len, members)), dtype=np.int64)
    for indices in members:
        shares = rng.dirichlet(np.full(clients, alpha))
        inner = np.floor(np.cumsum(shares)[:-1] * len(indices) + rng.random()).astype(np.int64)
        cuts = np.concatenate([[0], np.clip(inner, 0, len(indices)), [len(indices)]])
        owners[rng.permutation(indices)] = np.repeat(np.arange(clients), np.diff(cuts))
    return owners
