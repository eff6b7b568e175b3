"""Each client learns how much of the global model it takes."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, Finished, Local, Strategy

# A client's first weights are learnt until the losses of so many epochs hardly differ.
RECENT = 10


class FedAla(Strategy):
    """Begin each round between the client's own model and the global one, by weights that it learns: FedALA.

    Parameters
    ----------
    tensors
        The last parameter tensors of the model, which are mixed element by element; all below are the global ones.
    share
        Of the client's examples, drawn anew in each round, on which it learns the weights.
    rate
        Step size of the weights; 0 leaves them at 1, which is FedAvg.
    threshold
        Standard deviation of the last 10 losses below which the first learning of the weights ends.
    max_epochs
        After which it ends at the latest. Later ones are one epoch long.

    Raises
    ------
    ValueError
        If an option is out of range.

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

    def __init__(
        self,
        model: nn.Module,
        tensors: int = 2,
        share: float = 0.8,
        rate: float = 1.0,
        threshold: float = 0.1,
        max_epochs: int = 100,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        parameters = self.layers.keys(self.layers.names, buffers=False)
        if not 1 <= tensors <= len(parameters):
            raise ValueError(f"tensors = {tensors} must be from 1 to {len(parameters)}, the model's parameter tensors")
        if not 0 < share <= 1:
            raise ValueError(f"share = {share} must be greater than 0 and at most 1")
        if rate < 0 or threshold <= 0:
            raise ValueError(f"rate = {rate} must not be negative, threshold = {threshold} greater than 0")
        if max_epochs <= RECENT:
            raise ValueError(f"max_epochs = {max_epochs} must be more than {RECENT}, whose losses are compared")
        self._rule = FedAlaRule(parameters[-tensors:], share, rate, threshold, max_epochs)

    def kept(self, server_round: int) -> LayerGroup:
        """Clients keep their whole model, to mix it with the next global one."""
        return self.layers.group("all")

    def client_rule(self) -> ClientRule:
        """Clients learn their weights before they train."""
        return self._rule


class FedAlaRule(ClientRule):
    """Learns the set ``ala_weights``, one weight in [0, 1] for each element of the last tensors, and counts epochs.

    Parameters
    ----------
    mixed
        The last tensors.
    share, rate, threshold, max_epochs
        As in `FedAla`.
    """

    def __init__(self, mixed: tuple[str, ...], share: float, rate: float, threshold: float, max_epochs: int) -> None:
        self._mixed = mixed
        self._share = share
        self._rate = rate
        self._threshold = threshold
        self._max_epochs = max_epochs

    def start(self, local: Local) -> Local:
        """Learn the weights and mix; nothing is to learn where both models are the same, as in the first round."""
        weights = local.sets.get("ala_weights") or {key: torch.ones_like(local.own[key]) for key in self._mixed}
        learnt = local.sets.get("ala_epochs") or {"learnt": torch.zeros((), dtype=torch.int64)}
        losses: list[float] = []
        if not all(torch.equal(local.own[key], local.params[key]) for key in self._mixed):
            first = int(learnt["learnt"]) == 0
            chosen = local.rng.permutation(len(local.targets))[: max(1, round(self._share * len(local.targets)))]
            while not losses or (first and self._goes_on(losses)):
                weights, loss = self._epoch(local, weights, chosen)
                losses.append(loss)
        sets = {"ala_weights": weights, "ala_epochs": {"learnt": learnt["learnt"] + len(losses)}}
        return replace(local, params=self._mixture(local, weights), sets={**local.sets, **sets})

    def _goes_on(self, losses: list[float]) -> bool:
        settled = len(losses) > RECENT and float(np.std(losses[-RECENT:])) < self._threshold
        return not settled and len(losses) < self._max_epochs

    def _epoch(self, local: Local, weights: Params, chosen: np.ndarray) -> tuple[Params, float]:
        """Take one step for each batch; return the weights and the last batch's loss."""
        for begin in range(0, len(chosen), local.settings.batch_size):
            batch = torch.from_numpy(chosen[begin : begin + local.settings.batch_size]).to(local.targets.device)
            inputs, targets = local.inputs[batch], local.targets[batch]
            model = self._mixture(local, weights)
            slopes, loss = local.gradient(
                lambda mixed: cross_entropy(local.logits(model | mixed, inputs), targets),  # noqa: B023 (called at once)
                {key: model[key] for key in self._mixed},
                len(batch),
            )
            weights = {
                key: (value - self._rate * slopes[key] * (local.params[key] - local.own[key])).clamp(0, 1)
                for key, value in weights.items()
            }
        return weights, float(loss)

    def _mixture(self, local: Local, weights: Params) -> Params:
        return local.params | {key: torch.lerp(local.own[key], local.params[key], w) for key, w in weights.items()}

    def finish(self, local: Local, started: Local) -> Finished:
        """Keep the weights, and in how many epochs they were learnt."""
        return Finished(local.params, kept={name: local.sets[name] for name in ("ala_weights", "ala_epochs")})
