"""The personalisation procedure of the layer-wise connectivity paper."""

import math
from collections.abc import Sequence

from fedsim.models.params import Params
from fedsim.strategy import (
    ClientRule,
    ClientUpdate,
    Count,
    CountOrZero,
    Finished,
    Local,
    LocalPlan,
    Option,
    Phase,
    Positive,
    Strategy,
)

BATCHES = "batches"


class LlmcRule(ClientRule):
    """Sends the number of mini-batches of an epoch."""

    def finish(self, local: Local, started: Local) -> Finished:
        return Finished(local.params, metrics={BATCHES: math.ceil(len(local.targets) / local.settings.batch_size)})


class Llmc(Strategy, shared="all"):
    """Average one layer group, by mini-batches, in training with one schedule over all rounds: LLMC personalisation.

    References
    ----------
    Adilova et al. 2024, Layer-wise linear mode connectivity, arXiv 2307.06966, personalisation experiments.

    Notes
    -----
    Clients count by their mini-batches in an epoch, not by their examples. Set ``local.optimizer_state = "keep"``, as
    in the paper: its clients are never restarted. The defaults are the paper's 100 epochs with an average every 10.
    Its step size changes with each mini-batch, warmed up in 100 of them; here it changes with each epoch, so that
    clients with few and with many examples are at the same point of the schedule. ``local.epochs`` and ``local.lr``
    have no effect.
    """

    client_rule = LlmcRule
    epochs: Count = Option(10, "Passes over a client's examples in a round.")
    rounds: Count = Option(10, "Rounds of the whole schedule; in later ones the step size stays at its last value.")
    lr: Positive = Option(0.01, "Step size at the end of the warm-up.")
    warm_up: CountOrZero = Option(3, "Epochs in which the step size rises in equal steps, before half a cosine.")

    def prepare(self) -> None:
        if self.warm_up >= self.epochs * self.rounds:
            raise ValueError(f"warm_up = {self.warm_up} must be less than all {self.epochs * self.rounds} epochs")

    def local_plan(self, server_round: int) -> LocalPlan:
        before = (server_round - 1) * self.epochs
        return LocalPlan(tuple(Phase(epochs=1, lr=self.lr_of_epoch(before + epoch)) for epoch in range(self.epochs)))

    def lr_of_epoch(self, epoch: int) -> float:
        """Return the step size of an epoch of the whole training, from 0."""
        last = self.epochs * self.rounds
        epoch = min(epoch, last - 1)
        if epoch < self.warm_up:
            return self.lr * (epoch + 1) / (self.warm_up + 1)
        return self.lr * (1 + math.cos(math.pi * ((epoch - self.warm_up) / (last - self.warm_up)))) / 2

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        return self.average(updates, [update.metrics[BATCHES] for update in updates])
