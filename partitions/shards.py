"""Pathological label skew: each client holds a fixed number of classes."""

import numpy as np
from numpy.typing import NDArray

from partitions.grouping import deal, shuffled
from partitions.partition import Partition


def shards(
    labels: NDArray[np.int64], clients: int, rng: np.random.Generator, *, classes_per_client: int = 2
) -> Partition:
    """Give each client exactly k classes; the clients with a class share its examples evenly.

    Parameters
    ----------
    classes_per_client
        Number of classes of each client, k, from 1 to the number of classes.

    Raises
    ------
    ValueError
        If k is out of range, ``clients * k`` does not cover all classes, or a class has fewer examples
        than clients.

    Notes
    -----
    McMahan et al. cut the examples, sorted by label, into equal shards, so that a shard can hold two classes. Here a
    shard has one class, and all classes go to the same number of clients, to within one.

    References
    ----------
    McMahan et al. 2017, Communication-efficient learning of deep networks, arXiv 1602.05629, section 3.
    """
    examples = shuffled(labels, rng)
    classes = np.flatnonzero(examples.sizes)
    if not 1 <= classes_per_client <= len(classes):
        raise ValueError(f"classes_per_client = {classes_per_client} must be from 1 to {len(classes)}, the classes")
    if clients * classes_per_client < len(classes):
        raise ValueError(
            f"{clients} clients with {classes_per_client} classes each leave some of {len(classes)} classes without "
            "a client; use more clients or a larger classes_per_client"
        )
    dealt = classes[_deal_classes(len(classes), clients, classes_per_client, rng)]
    takers = shuffled(dealt, rng, len(examples))
    short = np.flatnonzero(examples.sizes < takers.sizes)
    if len(short):
        raise ValueError(
            f"class {short[0]} has {examples.sizes[short[0]]} examples for {takers.sizes[short[0]]} clients; "
            "use fewer clients or a smaller classes_per_client"
        )
    holders = Partition(rng.permutation(clients)[takers.indices // classes_per_client], takers.offsets)
    return Partition.from_owners(deal(examples, holders), clients)


def _deal_classes(classes: int, hands: int, per_hand: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the classes of one hand after the other, those dealt least first, ties at random; none twice in a hand.

    Whole shuffled decks of classes are dealt. A hand that starts with one deck and is completed from the next takes
    only classes that it does not hold yet; the rest of that deck is shuffled again.
    """
    dealt = np.empty(hands * per_hand, dtype=np.int64)
    position = 0
    while position < len(dealt):
        deck = rng.permutation(classes)
        begun = dealt[position - position % per_hand : position]
        if len(begun):
            ahead = deck[~np.isin(deck, begun)][: per_hand - len(begun)]
            deck = np.concatenate([ahead, rng.permutation(np.setdiff1d(deck, ahead))])
        end = min(position + classes, len(dealt))
        dealt[position:end] = deck[: end - position]
        position = end
    return dealt
