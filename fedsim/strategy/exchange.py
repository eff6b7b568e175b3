"""Who takes which layers: those that the server has averaged since a client last took part."""

from collections.abc import Iterable, Mapping, Sequence

import torch

from fedsim.models.params import Params


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
        By client: the round of its last valid update. Clients without one are not in it.
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
        """Return all of it as named tensors; the clients are listed where most of them have never taken part."""
        averaged_in = torch.tensor([self.averaged_in.get(name, -1) for name in self.layers])
        clients = sorted(self.last_round)
        rounds = torch.tensor([self.last_round[client] for client in clients], dtype=torch.int64)
        listed = torch.tensor(clients, dtype=torch.int64)
        size = clients[-1] + 1 if clients else 0
        if size > 2 * len(clients):
            return {"averaged_in": averaged_in, "last_round": rounds, "clients": listed}
        return {
            "averaged_in": averaged_in,
            "last_round": torch.zeros(size, dtype=torch.int64).scatter(0, listed, rounds),
        }

    def load_progress(self, progress: Mapping[str, torch.Tensor]) -> None:
        """Take what `progress` returned."""
        averaged = zip(self.layers, progress["averaged_in"].tolist(), strict=True)
        self.averaged_in = {name: server_round for name, server_round in averaged if server_round >= 0}
        rounds = progress["last_round"].tolist()
        clients = progress["clients"].tolist() if "clients" in progress else range(len(rounds))
        self.last_round = {client: last for client, last in zip(clients, rounds, strict=True) if last}
