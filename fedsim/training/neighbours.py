"""Class shares of the nearest neighbours, mixed with a model's probabilities: kNN-Per.

Marfoq et al. 2022, Personalized federated learning through local memorization, arXiv 2111.09360.
"""

import torch
from torch import Tensor

WEIGHTS = tuple(step / 10 for step in range(11))
QUERIES = 1000  # that are compared with all stored examples at a time
SMALLEST = 1e-12  # share of a class that no neighbour has, so that a loss is finite


def neighbour_shares(
    queries: Tensor, stored: Tensor, labels: Tensor, classes: int, neighbours: int, scale: float = 1.0
) -> Tensor:
    """Return the share of each class among the nearest stored examples, shape [n, classes].

    A neighbour at the distance d counts exp(-d^2 / (dimensions * scale)); all of them if there are fewer.

    Parameters
    ----------
    queries, stored
        Features, shapes [n, dimensions] and [stored, dimensions].
    labels
        Class of each stored example, shape [stored].
    """
    found = []
    for part in queries.split(QUERIES):
        apart = torch.cdist(part, stored, compute_mode="donot_use_mm_for_euclid_dist").square()
        nearest, places = apart.sort(dim=1, stable=True)
        counts = (-nearest[:, :neighbours] / (stored.shape[1] * scale)).softmax(1)
        shares = counts.new_zeros(len(part), classes)
        found.append(shares.scatter_add(1, labels[places[:, :neighbours]], counts))
    return torch.cat(found)


def mixed_logits(logits: Tensor, shares: Tensor, weight: float) -> Tensor:
    """Return the logarithm of (1 - weight) times the model's probabilities plus weight times the neighbours'.

    With weight 0 it is the model's own logits.
    """
    if weight == 0:
        return logits
    mixed = (1 - weight) * logits.double().softmax(1) + weight * shares.double()
    return mixed.clamp(min=SMALLEST).log()


def best_weight(logits: Tensor, shares: Tensor, targets: Tensor) -> float:
    """Return the weight of the neighbours with the least mean cross-entropy: 0, 0.1, ... or 1, the first of equals.

    Parameters
    ----------
    logits, shares, targets
        Of validation examples, at least one.
    """
    losses = [
        float(torch.nn.functional.cross_entropy(mixed_logits(logits, shares, weight).double(), targets))
        for weight in WEIGHTS
    ]
    return min(WEIGHTS, key=lambda weight: losses[WEIGHTS.index(weight)])
