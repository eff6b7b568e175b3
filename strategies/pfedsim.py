"""Bodies are averaged with those of clients whose heads are alike."""

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import cosine_similarity

from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, CountOrZero, Option, Strategy
from strategies.parts import two_parts

OWN = 0.9999  # similarity of a client to itself, as in FL-bench: 1 has no finite weight


class PFedSim(Strategy):
    """After some rounds of FedAvg, give each client the body of those whose heads are similar to its own: pFedSim.

    References
    ----------
    Tan et al. 2023, pFedSim: similarity-aware model aggregation towards personalized federated learning,
    arXiv 2305.15706.

    Notes
    -----
    Client i's body is the mean of all clients' last bodies, weighted by -log(1 - s_ij), for the cosine s_ij of their
    heads, at least 0. Similarities are recomputed for pairs of clients that took part in the same round. After the
    warm-up heads stay with their clients, but travel up, as they determine the similarities. The global model is the
    average of all.
    """

    head: str = Option("head", "Layers that stay personal after the warm-up and determine similarity.")
    warm_up: CountOrZero = Option(10, "Rounds of FedAvg before; the paper's is half of all.")

    def prepare(self) -> None:
        self._personal, self._mixed = two_parts(self.layers, "head", self.head)
        self._head, self._body = self.layers.keys(self._personal, buffers=False), self.keys(self._mixed)

    def kept(self, server_round: int) -> LayerGroup:
        return self._personal

    def for_client(self, server_round: int, client: int) -> Params:
        if server_round <= self.warm_up or str(client) not in self.memory.get("body", {}):
            return super().for_client(server_round, client)
        weights = {other: float(self.memory["weights"][client, int(other)]) for other in self.memory["body"]}
        return self.mixture(self.memory["body"], weights)

    def planned_layers(self, server_round: int, client: int) -> Sequence[str]:
        mixes = server_round > self.warm_up and self.exchange.last_round_of(client)
        return self._mixed.layers if mixes else super().planned_layers(server_round, client)

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        if "weights" not in self.memory:
            self.memory["weights"] = -math.log(1 - OWN) * torch.eye(self.clients, dtype=torch.float64)
        bodies = self.memory.setdefault("body", {})
        for update in updates:
            bodies[str(update.client)] = {key: update.shared[key] for key in self._body}
        heads = [torch.cat([update.shared[key].double().flatten() for key in self._head]) for update in updates]
        for i, one in enumerate(updates):
            for j, other in enumerate(updates[:i]):
                alike = float(cosine_similarity(heads[i], heads[j], dim=0).clamp(0, OWN))
                for pair in ((one.client, other.client), (other.client, one.client)):
                    self.memory["weights"][pair] = -math.log(1 - alike)
        return self.average(updates)
