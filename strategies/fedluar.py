"""Layers that hardly change take their last step again, without being sent."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedsim import seeds
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Strategy


class FedLuar(Strategy):
    """Let layers whose relative change is small repeat their last update instead of sending one: FedLUAR.

    Parameters
    ----------
    recycled
        Share of the layers that repeat their last update, in [0, 1), rounded down to a number of layers; 0 is FedAvg.

    Raises
    ------
    ValueError
        If ``recycled`` is out of range.

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

    def __init__(self, model: nn.Module, recycled: float = 0.5, **settings: Any) -> None:
        super().__init__(model, **settings)
        if not 0 <= recycled < 1:
            raise ValueError(f"recycled = {recycled} must be at least 0 and less than 1; 0 is FedAvg")
        self._count = int(recycled * len(self.layers))
        self._recycled: tuple[str, ...] = ()
        self._last: Params = {}
        self._ratio = dict.fromkeys(self.layers.names, 0.0)

    def shared(self, server_round: int) -> LayerGroup:
        """Share all layers but those that repeat their last update."""
        return LayerGroup("fresh", tuple(name for name in self.layers.names if name not in self._recycled))

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Return all layers: averages, and those that take their last step again."""
        mean = super().aggregate(server_round, updates)
        for name in self.layers.names:
            if name not in self._recycled:
                self._remember(name, mean)
        keys = [key for name in self._recycled for key in self.layers[name].parameters]
        repeated = {key: self.global_model[key] + self._last[key].to(self.global_model[key].device) for key in keys}
        self._recycled = self._draw(server_round)
        return mean | repeated

    def state(self) -> Params:
        """Return last updates, ratios, and which layers repeat their update next."""
        names = self.layers.names
        last = {f"last/{key}": value for key, value in self._last.items()}
        return last | {
            "ratio": torch.tensor([self._ratio[name] for name in names], dtype=torch.float64),
            "recycled": torch.tensor([name in self._recycled for name in names]),
        }

    def load_state(self, state: Params) -> None:
        """Take what `state` returned."""
        names = self.layers.names
        self._last = {key.removeprefix("last/"): value for key, value in state.items() if key.startswith("last/")}
        self._ratio = dict(zip(names, state["ratio"].tolist(), strict=True))
        chosen = zip(names, state["recycled"].tolist(), strict=True)
        self._recycled = tuple(name for name, recycled in chosen if recycled)

    def _remember(self, layer: str, mean: Params) -> None:
        keys = self.layers[layer].parameters
        # After a restart, the global model comes from the disk, and updates perhaps from a GPU.
        self._last |= {key: mean[key] - self.global_model[key].to(mean[key].device) for key in keys}
        before = _norm([self.global_model[key] for key in keys])
        # A layer of zeros has no direction yet, so that any step changes it without bound.
        self._ratio[layer] = _norm([self._last[key] for key in keys]) / before if before else float("inf")

    def _draw(self, server_round: int) -> tuple[str, ...]:
        clock = seeds.rng(self.seed, "recycled layers", server_round).exponential(size=len(self.layers))
        arrival = {name: ratio * time for (name, ratio), time in zip(self._ratio.items(), clock, strict=True)}
        first = set(sorted(arrival, key=lambda name: arrival[name])[: self._count])
        return tuple(name for name in self.layers.names if name in first)


def _norm(values: Sequence[torch.Tensor]) -> float:
    return float(sum(value.to(torch.float64).square().sum() for value in values)) ** 0.5
