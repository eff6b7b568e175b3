"""Clients are held near the model that they began with."""

from typing import Any

from torch import nn

from fedsim.models.layers import LayerGroup
from fedsim.strategy import LocalPlan, Phase, Strategy


class FedProx(Strategy):
    """Average all layers, and add (mu / 2) ||w - w_t||^2 to the clients' loss: FedProx.

    Parameters
    ----------
    mu
        Weight of the proximal term; 0 is FedAvg. The paper's grid is 0.001, 0.01, 0.1 and 1.
    shared
        The layer group that is averaged, in the layer language.

    Raises
    ------
    ValueError
        If ``mu`` is negative, or the group cannot be read.

    References
    ----------
    Li et al. 2020, Federated optimization in heterogeneous networks, arXiv 1812.06127.

    Notes
    -----
    w_t is the client's model as the round begins, so that layers that are not ``shared`` are held near their own last
    value. Running statistics have no gradient and are not held. Flower's documentation writes the norm of each tensor
    in its example of a client, where the paper has the square of the whole model's.
    """

    def __init__(self, model: nn.Module, mu: float = 0.01, shared: str = "all", **settings: Any) -> None:
        super().__init__(model, **settings)
        if mu < 0:
            raise ValueError(f"mu = {mu} must not be negative; 0 is FedAvg")
        self._shared = self.layers.group(shared)
        self._plan = LocalPlan((Phase(proximal=mu),))

    def shared(self, server_round: int) -> LayerGroup:
        """Share the same group in each round."""
        return self._shared

    def local_plan(self, server_round: int) -> LocalPlan:
        """Train all layers with the proximal term."""
        return self._plan
