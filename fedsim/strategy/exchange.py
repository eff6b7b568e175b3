"""Who takes which layers: those that the server has averaged since a client last took part."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from fedsim.models.params import Params
from fedsim.strategy.client_rounds import decoded, encoded


class Exchange:
    """When each layer was last averaged, and when each client last took part.

    Parameters
    ----------
    layers
        Names of all layers, in the model's order.

    Attributes
    ----------
    averaged_in
        By layer: the round in which it was last averaged. Layers that never were are not in it.
    last_round
        By client: the round in which it last trained and sent a valid update. Clients without one are not in it.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = tuple(layers)
        self.averaged_in: dict[str, int] = {}
        self.last_round: dict[int, int] = {}

    def last_round_of(self, client: int) -> int:
        """Return the last round in which a client took part; 0 if it never has."""
        return self.last_round.get(client, 0)

    def taken_by(self, client: int) -> tuple[str, ...]:
        """Return the layers that a client takes from the server when it next takes part."""
        last = self.last_round_of(client)
        return tuple(name for name in self.layers if self.averaged_in.get(name, -1) >= last)

    def note(self, server_round: int, averaged: Iterable[str], clients: Sequence[int]) -> None:
        """Note which layers were averaged in a round, and which clients took part in it."""
        self.averaged_in |= dict.fromkeys(averaged, server_round)
        self.last_round |= dict.fromkeys(clients, server_round)

    def progress(self) -> Params:
        """Return all of it as named tensors, for a checkpoint."""
        averaged_in = torch.tensor([self.averaged_in.get(name, -1) for name in self.layers])
        count = len(self.last_round)
        clients, rounds = (np.fromiter(each, np.int64, count) for each in (self.last_round, self.last_round.values()))
        order = np.argsort(clients)
        listed = (torch.from_numpy(each[order]) for each in (clients, rounds))
        return {"averaged_in": averaged_in, **encoded("last_round", *listed)}

    def load_progress(self, progress: Mapping[str, torch.Tensor]) -> None:
        """Take what `progress` returned."""
        averaged = zip(self.layers, progress["averaged_in"].tolist(), strict=True)
        self.averaged_in = {name: server_round for name, server_round in averaged if server_round >= 0}
        clients, rounds = decoded("last_round", progress)
        self.last_round = dict(zip(clients.tolist(), rounds.tolist(), strict=True))
