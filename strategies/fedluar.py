"""Layers that hardly change take their last step again, without being sent."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim import seeds
from fedsim.models.distance import norm
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Decay, Option, Strategy


class FedLuar(Strategy):
    """Let layers whose relative change is small repeat their last update instead of sending one: FedLUAR.

    References
    ----------
    Kim et al. 2025, Layer-wise update aggregation with recycling for communication-efficient federated learning,
    arXiv 2503.11146, algorithms 1 and 2.

    Notes
    -----
    After each round, layers are drawn for the next one, without replacement and with odds 1 / s for their ratio
    s = ||last update|| / ||parameters before it||; s of a recycled layer stays as it was. They are drawn by a race:
    each arrives after an exponential time of mean s, and the first ones are taken. A layer here is a weight with its
    bias, where the authors' code always averages biases. Running statistics of a recycled layer stay as they are. All
    layers travel to the clients, and all but the recycled ones back.
    """

    recycled: Decay = Option(0.5, "Share of the layers that repeat their last update, rounded down; 0 is FedAvg.")

    def prepare(self) -> None:
        count = len(self.layers)
        self.unplanned = "which layers repeat their last update" if int(self.recycled * count) else ""
        ratio, chosen = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.bool)
        self.memory = {"last": {}, "ratio": ratio, "recycled": chosen}

    def shared(self, server_round: int) -> LayerGroup:
        recycled = self.memory["recycled"].tolist()
        return LayerGroup("fresh", tuple(n for n, again in zip(self.layers.names, recycled, strict=True) if not again))

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        mean = self.average(updates)
        last, repeated = self.memory.setdefault("last", {}), Params()
        for position, layer in enumerate(self.layers):
            before = {key: self.global_model[key] for key in layer.parameters}
            if self.memory["recycled"][position]:
                repeated |= {key: value + last[key] for key, value in before.items()}
            else:
                last |= {key: mean[key] - value for key, value in before.items()}
                size = norm(before.values())
                # A layer of zeros has no direction yet, so that any step changes it without bound.
                self.memory["ratio"][position] = norm(last[key] for key in before) / size if size else math.inf
        self.memory["recycled"] = self.draw(server_round)
        return mean | repeated

    def draw(self, server_round: int) -> Tensor:
        """Return which layers repeat their last update in the next round, [layers]."""
        clock = seeds.rng(self.seed, "recycled layers", server_round).exponential(size=len(self.layers))
        arrival = [ratio * time for ratio, time in zip(self.memory["ratio"].tolist(), clock, strict=True)]
        first = sorted(range(len(arrival)), key=lambda position: arrival[position])[: int(self.recycled * len(arrival))]
        return torch.tensor([position in first for position in range(len(arrival))])
