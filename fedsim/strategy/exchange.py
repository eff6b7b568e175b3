"""Who takes which layers: those that the server has averaged since a client last took part."""

from collections.abc import Iterable, Sequence

import numpy as np


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
        By client: the round of its last valid update, 0 without one. Clients after the last entry have none.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = tuple(layers)
        self.averaged_in: dict[str, int] = {}
        self.last_round = np.zeros(0, dtype=np.int64)

    def last_round_of(self, client: int) -> int:
        """Return the last round in which a client took part; 0 if it never has."""
        return int(self.last_round[client]) if client < len(self.last_round) else 0

    def taken_by(self, client: int) -> tuple[str, ...]:
        """Return the layers that a client takes from the server when it next takes part."""
        last = self.last_round_of(client)
        return tuple(name for name in self.layers if self.averaged_in.get(name, -1) >= last)

    def note(self, server_round: int, averaged: Iterable[str], clients: Sequence[int]) -> None:
        """Note which layers were averaged in a round, and which clients took part in it, in ascending order."""
        self.averaged_in |= dict.fromkeys(averaged, server_round)
        if len(clients):
            self.last_round = np.pad(self.last_round, (0, max(0, clients[-1] + 1 - len(self.last_round))))
            self.last_round[list(clients)] = server_round
