"""A round for each of some clients, as tensors of a checkpoint."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim.models.params import Params

CLIENTS = "clients"


def encoded(name: str, clients: Tensor, rounds: Tensor) -> Params:
    """Return the rounds of clients, in ascending order, under a name; a round is at least 1.

    The clients are listed where most of those up to the last have no round; otherwise all of these have an entry, 0 for
    none, as in files of earlier versions.
    """
    size = int(clients[-1]) + 1 if len(clients) else 0
    if size > 2 * len(clients):
        return {name: rounds, CLIENTS: clients}
    return {name: torch.zeros(size, dtype=torch.int64).scatter(0, clients, rounds)}


def decoded(name: str, held: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the clients that have a round, in ascending order, and their rounds."""
    clients = held[CLIENTS] if CLIENTS in held else held[name].nonzero().flatten()
    return clients, held[name] if CLIENTS in held else held[name][clients]
