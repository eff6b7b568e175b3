"""Each client sends some of its layers, drawn at random."""

from collections.abc import Sequence

from fedsim import seeds
from fedsim.models.averaging import mean_of_present
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Option, PositiveShare, Strategy


class FedLp(Strategy, shared="all"):
    """Let each client send each layer with some probability, and average a layer over those that sent it: FedLP.

    References
    ----------
    Zhu et al. 2023, FedLP: layer-wise pruning mechanism for communication-computation efficient federated learning,
    arXiv 2303.06360, the scheme for homogeneous models.

    Notes
    -----
    What is drawn depends on seed, round and client only. A layer that no client sends stays as it is. Clients take all
    shared layers from the server in each round, and train all. A client that sends nothing has taken part.
    """

    rate: PositiveShare = Option(
        0.5, "Probability that a client sends a layer, the layer-preserving rate; 1 is FedAvg."
    )

    def shared_by(self, server_round: int, client: int) -> LayerGroup:
        drawn = seeds.rng(self.seed, "layers sent", server_round, client).random(len(self.group)) < self.rate
        return LayerGroup("drawn", tuple(layer for layer, sent in zip(self.group, drawn, strict=True) if sent))

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        members, weights = [update.shared for update in updates], [update.num_examples for update in updates]
        unsent = {key: self.global_model[key] for key in self.layers.keys(self.group)}
        return unsent | mean_of_present(members, weights, self.dtype)
