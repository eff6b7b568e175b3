"""Label skew drawn from a Dirichlet distribution, class by class."""

import numpy as np
from numpy.typing import NDArray

from partitions.draws import check_alpha, polya_urns
from partitions.grouping import grouped
from partitions.partition import Partition
from partitions.sizes import check_sizes

HOPELESS_DRAWS, HOPELESS_CLIENTS = 20, 20


def dirichlet(
    labels: NDArray[np.int64],
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float,
    min_size: int = 10,
    max_draws: int = 1000,
    balanced: bool = False,
) -> Partition:
    """Deal each class over the clients in shares drawn from Dirichlet(alpha).

    Parameters
    ----------
    alpha
        Concentration: 0.1 gives most clients two or three classes, 10 is close to i.i.d.
    min_size
        Smallest number of examples of a client; the whole partition is redrawn until it is reached.
    max_draws
        Largest number of draws. If each of the first 20 draws leaves more than 20 clients short, no more are tried.
    balanced
        Whether a client that already holds an equal share of all examples gets nothing of the later classes. The
        classes are dealt in random order, so that none is always last, with few clients left.

    Raises
    ------
    ValueError
        If an option is out of range, the examples cannot fill the clients, or no draw reaches ``min_size``.

    Notes
    -----
    Given the shares, each example of a class is assigned independently, so that the numbers are exactly
    Dirichlet-multinomial. The common cut of the class at floor(C n), C the cumulative shares, gives every remainder
    to the last client. Time and memory depend on the number of examples and hardly on that of clients; ``balanced``
    adds one pass over the clients for each class.

    References
    ----------
    Hsu, Qi, Brown 2019, Measuring the effects of non-identical data distribution, arXiv 1909.06335;
    per class over clients as in Yurochkin et al. 2019, arXiv 1905.12022; ``balanced`` as in the code of Li et al. 2021,
    Federated learning on non-IID data silos (NIID-Bench), arXiv 2102.02079.
    """
    check_alpha(alpha)
    check_sizes(len(labels), clients, min_size)
    if max_draws < 1:
        raise ValueError(f"max_draws = {max_draws} must be at least 1, the first draw")
    classes = grouped(labels)
    best, fewest_short = 0, clients
    for draws in range(1, max_draws + 1):
        owners = (_balanced if balanced else _independent)(classes, clients, alpha, rng)
        sizes = np.bincount(owners, minlength=clients)
        if sizes.min() >= min_size:
            return Partition.from_owners(owners, clients)
        best = max(best, int(sizes.min()))
        fewest_short = min(fewest_short, int((sizes < min_size).sum()))
        if draws >= HOPELESS_DRAWS and fewest_short > HOPELESS_CLIENTS:
            break
    raise ValueError(
        f"none of {draws} Dirichlet draws with alpha = {alpha} gave each of {clients} clients "
        f"min_size = {min_size} examples (the best gave {best}, and at least {fewest_short} clients were short); use a "
        "smaller min_size, a larger alpha or fewer clients"
    )


def _independent(classes: Partition, clients: int, alpha: float, rng: np.random.Generator) -> NDArray[np.int64]:
    owners = np.empty(len(classes.indices), dtype=np.int64)
    owners[classes.indices] = polya_urns(classes.sizes, clients, alpha, rng)
    return owners


def _balanced(classes: Partition, clients: int, alpha: float, rng: np.random.Generator) -> NDArray[np.int64]:
    owners = np.empty(len(classes.indices), dtype=np.int64)
    held = np.zeros(clients, dtype=np.int64)
    for label in rng.permutation(len(classes)):
        # Dirichlet shares without those of some clients, scaled to sum 1, are Dirichlet shares of the others.
        unfilled = np.flatnonzero(held * clients < len(owners))
        drawn = unfilled[polya_urns(classes.sizes[label : label + 1], len(unfilled), alpha, rng)]
        owners[classes[label]] = drawn
        held += np.bincount(drawn, minlength=clients)
    return owners
