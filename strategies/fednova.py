"""Clients that take more or longer steps do not pull the average towards their own objective."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, Step, Strategy

LENGTH = "length"


class FedNovaRule(ClientRule):
    """Measures eta ||a_k||_1: how far a constant gradient of 1 moves a parameter, with or without momentum."""

    trained = ("path",)
    linear_steps = True

    def start(self, local: Local) -> Local:
        zero = local.params[self.parameters[0]].new_zeros(())
        decay = zero + local.settings.weight_decay
        return replace(local, sets={**local.sets, "path": {LENGTH: zero}, "settings": {"decay": decay}})

    def gradient(self, step: Step, gradients: Params) -> Params:
        # Weight decay is no step of the path.
        decayed = step.sets["settings"]["decay"] * step.sets["path"][LENGTH]
        return gradients | {f"path/{LENGTH}": -torch.ones_like(decayed) - decayed}

    def finish(self, local: Local, started: Local) -> Finished:
        return Finished(local.params, metrics={LENGTH: float(local.sets["path"][LENGTH])})


class FedNova(Strategy, shared="all"):
    """Average the clients' moves per step, and take as many steps as they have taken on average: FedNova.

    References
    ----------
    Wang et al. 2020, Tackling the objective inconsistency problem in heterogeneous federated optimization,
    arXiv 2007.07481, equation 6.

    Notes
    -----
    A client's move is divided by eta ||a_k||_1, the sum of its step sizes, with each gradient counted as often as
    momentum repeats it. It is measured by a parameter whose gradient is constant, so that it holds for momentum and for
    schedules. Equal numbers of steps give FedAvg. Running statistics are averaged by examples.
    """

    client_rule = FedNovaRule

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        total = sum(update.num_examples for update in updates)
        shares = [update.num_examples / total for update in updates]
        lengths = [update.metrics[LENGTH] for update in updates]
        effective = sum(share * length for share, length in zip(shares, lengths, strict=True))
        weights = [share * effective / length for share, length in zip(shares, lengths, strict=True)]
        moved = self.toward(self.average(updates, weights), sum(weights))
        return self.average(updates) | {key: value for key, value in moved.items() if key in self.parameters}
