"""Clients stay connected with past global models."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Count, Local, NonNegative, Option, Sets, Step, Strategy


class FedGucciRule(ClientRule):
    """Adds the mean loss between the model and the sets ``anchor_0``, the current global model, ``anchor_1``, ..."""

    beta: float
    points: str

    def start(self, local: Local) -> Local:
        return replace(local, sets={**local.sets, "anchor_0": {key: local.params[key] for key in self.parameters}})

    def draw(self, rng: np.random.Generator, sets: Sets) -> Params:
        count = len(_anchors(sets))
        points = rng.uniform(size=count) if self.points == "random" else np.full(count, 0.5)
        return {"points": torch.from_numpy(points)}

    def loss(self, step: Step) -> Tensor:
        loss = step.loss_of(step.logits(step.params))
        anchors = _anchors(step.sets)
        for anchor, t in zip(anchors, step.drawn["points"], strict=True):
            between = self._between(anchor, step.params, t)
            loss = loss + self.beta / len(anchors) * step.loss_of(step.logits(between))
        return loss

    def _between(self, anchor: Params, model: Params, t: Tensor) -> Params:
        """Return ``(1 - t) * anchor + t * model``; other entries are copies, as a pass may change them."""
        t = t.to(anchor[self.parameters[0]])
        others = {key: value.clone() for key, value in model.items() if key not in anchor}
        return others | {key: (1 - t) * value + t * model[key] for key, value in anchor.items()}


class FedGucci(Strategy):
    """Keep the loss low between each client's model and past global ones, so that averaging costs less: FedGuCci.

    References
    ----------
    Li et al. 2024, Improving group connectivity for generalization of federated deep learning, arXiv 2402.18949.

    Notes
    -----
    A step descends the sum of both losses, as in the paper; the authors' code takes a step for the client's loss and
    then one for each anchor, at the middle, where the paper draws points. The current global model needs no message of
    its own; each further anchor costs one more model down. Running statistics are those of the client's model alone.
    FedGuCci+ (sharpness-aware steps and calibrated logits) is not here.
    """

    client_rule = FedGucciRule
    anchors: Count = Option(1, "Global models that clients stay connected with, the current one among them.")
    beta: NonNegative = Option(0.1, "Weight of the loss between the models; 0 is FedAvg.")
    points: Literal["middle", "random"] = Option(
        "middle", "Halfway to an anchor, or a point drawn for each mini-batch."
    )

    def sets_for(self, server_round: int, client: int) -> Sets:
        # What is remembered is named by age, from 0: the current global model travels anyway.
        return {f"anchor_{int(age) + 1}": model for age, model in self.memory.items()}

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        size = sum(self.global_model[key].nbytes for key in self.parameters)
        return {f"anchor_{age + 1}": (0, size) for age in range(min(server_round, self.anchors) - 1)}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        past = [self.memory[age] for age in sorted(self.memory, key=int)]
        models = [{key: self.global_model[key] for key in self.parameters}, *past]
        self.memory = {str(age): model for age, model in enumerate(models[: self.anchors - 1])}
        return self.average(updates)


def _anchors(sets: Sets) -> list[Params]:
    return [sets[name] for name in sorted(sets) if name.startswith("anchor_")]
