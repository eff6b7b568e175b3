"""Layers to which the clients' losses are sensitive take shorter steps."""

import math
from collections.abc import Mapping, Sequence

import torch

from fedsim.models.params import Params
from fedsim.strategy import (
    ClientRule,
    ClientUpdate,
    Decay,
    Finished,
    Local,
    NonNegative,
    Option,
    PositiveShare,
    Strategy,
)

SENSITIVITY = "sensitivity"


class ElasticRule(ClientRule):
    """Sends, for each layer, a running mean over mini-batches of the squared gradient at the model that it received."""

    share: float
    decay: float

    def finish(self, local: Local, started: Local) -> Finished:
        count = math.ceil(self.share * len(local.targets) - 1e-9)
        drawn = local.rng.permutation(len(local.targets))[:count]
        running = torch.zeros(len(self.layers), dtype=torch.float64)
        for chosen in local.batches(drawn):
            slopes, _ = local.loss_gradient(started.params, self.parameters, chosen)
            squares = [sum(float(slopes[key].double().square().sum()) for key in x.parameters) for x in self.layers]
            running = self.decay * running + (1 - self.decay) * torch.tensor(squares, dtype=torch.float64)
        return Finished(local.params, sent={SENSITIVITY: {"by_layer": running}})


class Elastic(Strategy, shared="all"):
    """Move each layer less, the more sensitive the clients are to it on average: elastic aggregation.

    References
    ----------
    Chen et al. 2023, Elastic aggregation for federated optimization, CVPR (not on arXiv).

    Notes
    -----
    A layer moves by zeta times the clients' mean update, zeta = 1 + tau - s / max s, for the mean and the largest of
    the clients' sensitivities to the layer. Sensitivities are measured at the global model as it came, on a share of
    the training examples. In FL-bench clients of a worker share one sensitivity, and gradients add up over
    mini-batches; here neither. A layer to which nobody is sensitive has zeta = tau.
    """

    client_rule = ElasticRule
    tau: NonNegative = Option(0.5, "Value of zeta when all clients are equally sensitive.")
    share: PositiveShare = Option(0.3, "Share of the training examples on which sensitivity is measured, rounded up.")
    decay: Decay = Option(0.95, "Share of the running mean that the next mini-batch keeps, the paper's mu.")

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        return {SENSITIVITY: (len(self.layers) * torch.float64.itemsize, 0)}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        mean = self.average(updates)
        sensitivity = torch.stack([update.sets[SENSITIVITY]["by_layer"] for update in updates])
        for layer, values in zip(self.layers, sensitivity.T.tolist(), strict=True):
            largest = max(values)
            zeta = 1 + self.tau - (sum(values) / len(values) / largest if largest else 1.0)
            for key in layer.parameters:
                if key in mean:
                    mean[key] = torch.lerp(self.global_model[key], mean[key], zeta)
        return mean
