"""Pathological label skew: each client holds a fixed number of classes."""

import numpy as np
from numpy.typing import NDArray

from partitions.partition import Partition


def shards(
    labels: NDArray[np.int64], clients: int, rng: np.random.Generator, *, classes_per_client: int = 2
) -> Partition:
    """Give each client exactly k classes; the clients of a class share its examples evenly.

    Parameters
    ----------
    classes_per_client
        k, from 1 to the number of classes.

    Raises
    ------
    ValueError
        If k is out of range, ``clients * k`` does not cover all classes, or a class has fewer examples
        than clients.

    Notes
    -----
    McMahan et al. cut the examples sorted by label into equal shards, so that a shard can hold two classes. Here
    a shard is of one class, and each class goes to as many clients as any other, to within one.

    References
    ----------
    McMahan et al. 2017, Communication-efficient learning of deep networks, arXiv 1602.05629, section 3.
    """
    classes = np.unique(labels)
    if not 1 <= classes_per_client <= len(classes):
        raise ValueError(f"classes_per_client = {classes_per_client} must be from 1 to {len(classes)}, the classes")
    if clients * classes_per_client < len(classes):
        raise ValueError(
            f"{clients} clients with {classes_per_client} classes each leave some of {len(classes)} classes without "
            "a client; use more clients or a larger classes_per_client"
        )
    holders: list[list[int]] = [[] for _ in classes]
    for client in rng.permutation(clients):
        # The least dealt classes first, ties at random: no class is dealt twice to one client.
        order = np.lexsort((rng.random(len(classes)), np.array([len(holder) for holder in holders])))
        for position in order[:classes_per_client]:
            holders[position].append(int(client))
    owners = np.empty(len(labels), dtype=np.int64)
    for label, holder in zip(classes, holders, strict=True):
        indices = rng.permutation(np.flatnonzero(labels == label))
        if len(indices) < len(holder):
            raise ValueError(
                f"class {label} has {len(indices)} examples for {len(holder)} clients; "
                "use fewer clients or a smaller classes_per_client"
            )
        owners[indices] = np.asarray(holder)[np.arange(len(indices)) % len(holder)]
    return Partition.from_owners(owners, clients)
