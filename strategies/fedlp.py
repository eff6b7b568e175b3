"""Each client sends some of its layers, drawn at random."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedsim import seeds
from fedsim.models.averaging import mean_of_present
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Strategy


class FedLp(Strategy):
    """Let each client send each layer with some probability, and average a layer over those that sent it: FedLP.

    Parameters
    ----------
    rate
        Probability with which a client sends a layer, in (0, 1]: the paper's layer-preserving rate; 1 is FedAvg.
    shared
        The layer group that clients send of, in the layer language.

    Raises
    ------
    ValueError
        If ``rate`` is out of range, or the group cannot be read.

    References
    ----------
    Zhu et al. 2023, FedLP: layer-wise pruning mechanism for communication-computation efficient federated learning,
    arXiv 2303.06360, the scheme for homogeneous models.

    Notes
    -----
    What is drawn depends on seed, round and client only. A layer that nobody sends stays as it is. Clients take all
    shared layers from the server in each round, and train all. A client that sends nothing has taken part.
    """

    def __init__(self, model: nn.Module, rate: float = 0.5, shared: str = "all", **settings: Any) -> None:
        super().__init__(model, **settings)
        if not 0 < rate <= 1:
            raise ValueError(f"rate = {rate} must be greater than 0 and at most 1, which is FedAvg")
        self._rate = rate
        self._shared = self.layers.group(shared)

    def shared(self, server_round: int) -> LayerGroup:
        """Share the same group in each round."""
        return self._shared

    def shared_by(self, server_round: int, client: int) -> LayerGroup:
        """Let the client send the layers that are drawn for it."""
        drawn = seeds.rng(self.seed, "layers sent", server_round, client).random(len(self._shared)) < self._rate
        chosen = tuple(layer for layer, sent in zip(self._shared, drawn, strict=True) if sent)
        return LayerGroup("drawn", chosen)

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Return the average of each layer over the clients that sent it, or the global model's."""
        members, weights = [update.shared for update in updates], [update.num_examples for update in updates]
        unsent = {key: self.global_model[key] for key in self.layers.keys(self._shared)}
        return unsent | mean_of_present(members, weights, self.precision)
