"""Clients with a larger loss count more."""

from collections.abc import Mapping, Sequence

import torch

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, NonNegative, Option, Strategy

LOSS = "loss"
SMALLEST = 1e-10  # added to losses, as in the authors' code: a power of 0 may be infinite


class LossRule(ClientRule):
    """Sends the loss of the model that it began with on its training data, and the step size: the set ``loss``."""

    linear_steps = True

    def finish(self, local: Local, started: Local) -> Finished:
        with torch.no_grad():
            loss = local.mean_loss(started.params)
        numbers = torch.stack([loss.double(), torch.full_like(loss, local.settings.lr, dtype=torch.float64)])
        return Finished(local.params, sent={LOSS: {LOSS: numbers}})


class QFfl(Strategy, shared="all"):
    """Minimise the sum of p_k F_k^(q + 1) / (q + 1), so that losses differ less between clients: q-FFL by q-FedAvg.

    References
    ----------
    Li et al. 2020, Fair resource allocation in federated learning, arXiv 1905.10497, algorithm 2.

    Notes
    -----
    With L = 1 / ``local.lr``, client k's loss F_k at the model w that it got and its move d_k = w - w_k, the step is
    sum p_k F_k^q L d_k / sum p_k (q F_k^(q - 1) L^2 ||d_k||^2 + L F_k^q). With q = 0 it is FedAvg. Clients count by
    their examples; in the authors' code they are drawn by them instead, and count the same. The norm is that of the
    shared layers; running statistics are averaged by examples. The loss costs a forward pass of the training data.
    """

    client_rule = LossRule
    q: NonNegative = Option(1.0, "Exponent of a client's loss in its weight: larger values favour large losses.")

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        return {LOSS: (2 * torch.float64.itemsize, 0)}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        mean, numerators, denominator = self.average(updates), [], 0.0
        keys = [key for key in self.parameters if key in mean]
        for update in updates:
            loss, lr = (float(number) for number in update.sets[LOSS][LOSS])
            moves = [self.global_model[key].double() - update.shared[key].double() for key in keys]
            length = sum(float(move.square().sum()) for move in moves)
            weight = update.num_examples * (loss + SMALLEST) ** self.q
            numerators.append(weight / lr)
            denominator += weight / lr * (1 + self.q * length / lr / (loss + SMALLEST))
        # The step goes that share of the way to the clients' mean, weighted by losses; 1 with q = 0.
        moved = self.toward(self.average(updates, numerators), sum(numerators) / denominator)
        return mean | {key: moved[key] for key in keys}
