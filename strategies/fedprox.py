"""Clients are held near the model that they began with."""

from fedsim.strategy import LocalPlan, NonNegative, Option, Phase, Strategy


class FedProx(Strategy, shared="all"):
    """Average all layers, and add (mu / 2) ||w - w_t||^2 to the clients' loss: FedProx.

    References
    ----------
    Li et al. 2020, Federated optimization in heterogeneous networks, arXiv 1812.06127.

    Notes
    -----
    w_t is the client's model as the round begins, so that layers that are not ``shared`` are held near their own last
    value. Running statistics have no gradient and are not held. Flower's documentation writes the norm of each tensor
    in its example of a client, where the paper has the square of the whole model's.
    """

    mu: NonNegative = Option(0.01, "Weight of the proximal term; 0 is FedAvg. The paper's grid: 0.001, 0.01, 0.1, 1.")

    def local_plan(self, server_round: int) -> LocalPlan:
        return LocalPlan((Phase(proximal=self.mu),))
