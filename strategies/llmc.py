"""The personalisation procedure of the layer-wise connectivity paper."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from fedsim.models.averaging import weighted_mean
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, LocalPlan, Phase, Strategy

BATCHES = "batches"


class Llmc(Strategy):
    """Average one layer group, by mini-batches, in training with one schedule over all rounds: LLMC personalisation.

    Parameters
    ----------
    shared
        The layer group that is averaged, in the layer language.
    epochs
        Passes over a client's examples in a round.
    rounds
        Rounds of the whole schedule; in later ones the step size stays at its last value.
    lr
        Step size at the end of the warm-up.
    warm_up
        Epochs in which the step size rises in equal steps, before it falls by half a cosine.

    Raises
    ------
    ValueError
        If a number is out of range, the warm-up is not shorter than the schedule, or the group cannot be read.

    References
    ----------
    Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966, personalisation experiments.

    Notes
    -----
    Clients count by their mini-batches in an epoch, not by their examples. Set ``local.optimizer_state = "keep"``, as
    in the paper: its clients are never restarted. The defaults are the paper's 100 epochs with an average every 10.
    Its step size changes with each mini-batch, warmed up in 100 of them; here it changes with each epoch, so that
    clients with few and with many examples are at the same point of the schedule. ``local.epochs`` and ``local.lr``
    play no part.
    """

    def __init__(
        self,
        model: nn.Module,
        shared: str = "all",
        epochs: int = 10,
        rounds: int = 10,
        lr: float = 0.01,
        warm_up: int = 3,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        for name, value in (("epochs", epochs), ("rounds", rounds)):
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        if lr <= 0:
            raise ValueError(f"lr = {lr} must be greater than 0")
        if not 0 <= warm_up < epochs * rounds:
            raise ValueError(f"warm_up = {warm_up} must be at least 0 and less than all {epochs * rounds} epochs")
        self._shared = self.layers.group(shared)
        self._epochs, self._all_epochs, self._lr, self._warm_up = epochs, epochs * rounds, lr, warm_up

    def shared(self, server_round: int) -> LayerGroup:
        """Share the same group in each round."""
        return self._shared

    def local_plan(self, server_round: int) -> LocalPlan:
        """Train all layers, with a step size for each epoch."""
        before = (server_round - 1) * self._epochs
        rates = [self.lr_of_epoch(before + epoch) for epoch in range(self._epochs)]
        return LocalPlan(tuple(Phase(epochs=1, lr=rate) for rate in rates))

    def lr_of_epoch(self, epoch: int) -> float:
        """Return the step size of an epoch of the whole training, from 0."""
        epoch = min(epoch, self._all_epochs - 1)
        if epoch < self._warm_up:
            return self._lr * (epoch + 1) / (self._warm_up + 1)
        share = (epoch - self._warm_up) / (self._all_epochs - self._warm_up)
        return self._lr * (1 + math.cos(math.pi * share)) / 2

    def client_rule(self) -> ClientRule:
        """Clients say how many mini-batches they have."""
        return LlmcRule()

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Return the mean weighted by mini-batches."""
        members, weights = [update.shared for update in updates], [update.metrics[BATCHES] for update in updates]
        return weighted_mean(members, weights, self.precision)


class LlmcRule(ClientRule):
    """Counts the mini-batches of an epoch."""

    def finish(self, local: Local, started: Local) -> Finished:
        """Send the number of mini-batches."""
        return Finished(local.params, metrics={BATCHES: math.ceil(len(local.targets) / local.settings.batch_size)})
