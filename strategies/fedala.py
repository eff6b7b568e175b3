"""Each client learns how much of the global model it takes."""

from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt

from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, Count, Finished, Local, NonNegative, Option, Positive, PositiveShare, Strategy

# A client's first weights are learnt until the losses of this many epochs hardly differ.
RECENT = 10


class FedAlaRule(ClientRule):
    """Learns the set ``ala_weights``, one weight in [0, 1] for each element of the last tensors, and counts epochs."""

    tensors: int
    share: float
    rate: float
    threshold: float
    max_epochs: int

    def start(self, local: Local) -> Local:
        mixed = self.parameters[-self.tensors :]
        weights = local.sets.get("ala_weights") or {key: torch.ones_like(local.own[key]) for key in mixed}
        learnt = local.sets.get("ala_epochs") or {"learnt": torch.zeros((), dtype=torch.int64)}
        losses: list[float] = []
        # There is nothing to learn where both models are the same, as in the first round.
        if not all(torch.equal(local.own[key], local.params[key]) for key in mixed):
            first = int(learnt["learnt"]) == 0
            chosen = local.rng.permutation(len(local.targets))[: max(1, round(self.share * len(local.targets)))]
            while not losses or (first and not self._settled(losses)):
                weights, loss = self._epoch(local, weights, chosen)
                losses.append(loss)
        sets = {"ala_weights": weights, "ala_epochs": {"learnt": learnt["learnt"] + len(losses)}}
        return replace(local, params=self._mixture(local, weights), sets={**local.sets, **sets})

    def finish(self, local: Local, started: Local) -> Finished:
        return Finished(local.params, kept={name: local.sets[name] for name in ("ala_weights", "ala_epochs")})

    def _settled(self, losses: list[float]) -> bool:
        level = len(losses) > RECENT and float(np.std(losses[-RECENT:])) < self.threshold
        return level or len(losses) >= self.max_epochs

    def _epoch(self, local: Local, weights: Params, chosen: np.ndarray) -> tuple[Params, float]:
        """Take one step for each batch; return the weights and the last batch's loss."""
        for batch in local.batches(chosen):
            slopes, loss = local.loss_gradient(self._mixture(local, weights), weights, batch)
            weights = {
                key: (value - self.rate * slopes[key] * (local.params[key] - local.own[key])).clamp(0, 1)
                for key, value in weights.items()
            }
        return weights, float(loss)

    def _mixture(self, local: Local, weights: Params) -> Params:
        return local.params | {key: torch.lerp(local.own[key], local.params[key], w) for key, w in weights.items()}


class FedAla(Strategy):
    """Begin each round between the client's own model and the global one, by weights that it learns: FedALA.

    References
    ----------
    Zhang et al. 2023, FedALA: adaptive local aggregation for personalized federated learning, arXiv 2212.01197.

    Notes
    -----
    ``tensors`` counts as the authors' code does: 2 are the weight and the bias of the last layer. Their code learns on
    a window of the examples and drops the last batch of an epoch; here the examples are drawn, and none is dropped.
    Their ending has no limit like ``max_epochs``. The own model of a client that never trained is the initial one.
    Running statistics are the server's, as lower layers are. The model is evaluated as it begins the next round, so
    each evaluation learns weights too, which costs an epoch or, before the first learning, many.
    """

    client_rule = FedAlaRule
    tensors: Count = Option(2, "Last parameter tensors that are mixed by element; all below are the global ones.")
    share: PositiveShare = Option(0.8, "Share of the examples, drawn in each round, on which a client learns weights.")
    rate: NonNegative = Option(1.0, "Step size of the weights; 0 leaves them at 1, which is FedAvg.")
    threshold: Positive = Option(0.1, "Deviation of the last 10 losses below which the first learning ends.")
    max_epochs: Annotated[int, Gt(RECENT)] = Option(100, "Epochs of the first learning at most; later ones take one.")

    def prepare(self) -> None:
        if self.tensors > len(self.parameters):
            raise ValueError(f"tensors = {self.tensors} must be at most {len(self.parameters)}, the model's parameters")

    def kept(self, server_round: int) -> LayerGroup:
        return self.layers.group("all")  # to mix it with the next global model
