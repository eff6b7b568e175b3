"""Each client's objective is bent so that all have the same minimum."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedsim.models.params import Params
from fedsim.strategy import (
    ClientRule,
    ClientUpdate,
    Finished,
    Local,
    LocalPlan,
    Option,
    Phase,
    Positive,
    Step,
    Strategy,
)


class FedDynRule(ClientRule):
    """Subtracts the set ``slope``, the client's gradient where it last ended, from each gradient."""

    alpha: float

    def start(self, local: Local) -> Local:
        zeros = {key: torch.zeros_like(local.params[key]) for key in self.parameters}
        return replace(local, sets={"slope": zeros, **local.sets})

    def gradient(self, step: Step, gradients: Params) -> Params:
        slope = step.sets["slope"]
        return {key: value - slope[key] if key in slope else value for key, value in gradients.items()}

    def finish(self, local: Local, started: Local) -> Finished:
        slope = {
            key: value - self.alpha * (local.params[key] - started.params[key])
            for key, value in started.sets["slope"].items()
        }
        return Finished(local.params, kept={"slope": slope})


class FedDyn(Strategy):
    """Add to each client's loss a linear and a proximal term under which all agree where the mean is best: FedDyn.

    References
    ----------
    Acar et al. 2021, Federated learning based on dynamic regularization, arXiv 2111.04263, algorithm 1.

    Notes
    -----
    A client descends f_k(w) - <h_k, w> + (alpha / 2) ||w - w_t||^2 and then subtracts alpha (w_k - w_t) from h_k; the
    server keeps the sum of these changes, over the number of all clients that train, and moves the mean, which is over
    clients and not over examples, by it. A client sends FedAvg's bytes and keeps one model. Running statistics are
    averaged as they are.
    """

    client_rule = FedDynRule
    alpha: Positive = Option(0.1, "Weight of the proximal term; the authors use 0.1 and 0.01.")

    def local_plan(self, server_round: int) -> LocalPlan:
        return LocalPlan((Phase(proximal=self.alpha),))

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        mean, share = self.average(updates, [1.0] * len(updates)), len(updates) / len(self.clients_that_train)
        for key in self.parameters:
            moved = share * self.alpha * (mean[key] - self.global_model[key])
            self.memory[key] = self.memory.get(key, torch.zeros_like(moved)) - moved
        return mean | {key: mean[key] - self.memory[key] / self.alpha for key in self.parameters}
