"""Clients stay connected with past global models."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Local, Sets, Step, Strategy


class FedGucci(Strategy):
    """Keep the loss low between each client's model and past global ones, so that averaging costs less: FedGuCci.

    Parameters
    ----------
    anchors
        Global models, the current one among them, that clients stay connected with.
    beta
        Weight of the loss between the models; 0 is FedAvg.
    points
        Where between a client's model and an anchor it is taken: halfway, or at a random point for each mini-batch.

    Raises
    ------
    ValueError
        If ``anchors`` is not positive or ``beta`` negative.

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

    def __init__(
        self,
        model: nn.Module,
        anchors: int = 1,
        beta: float = 0.1,
        points: Literal["middle", "random"] = "middle",
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        if anchors < 1:
            raise ValueError(f"anchors = {anchors} must be at least 1, the current global model")
        if beta < 0:
            raise ValueError(f"beta = {beta} must not be negative; 0 is FedAvg")
        self._parameters = self.layers.keys(self.layers.names, buffers=False)
        self._past: list[Params] = []  # the latest first
        self._most = anchors - 1
        self._rule = FedGucciRule(self._parameters, beta, points)

    def client_rule(self) -> ClientRule:
        """Clients add the loss between models."""
        return self._rule

    def sets_for(self, server_round: int, client: int) -> Sets:
        """Send past global models, all but the current one."""
        return {f"anchor_{age}": model for age, model in enumerate(self._past, start=1)}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Average as FedAvg does, and remember the model that the round began with."""
        current = {key: self.global_model[key] for key in self._parameters}
        self._past = [current, *self._past][: self._most]
        return super().aggregate(server_round, updates)

    def state(self) -> Params:
        """Remember past global models."""
        return {f"{age}/{key}": value for age, model in enumerate(self._past) for key, value in model.items()}

    def load_state(self, state: Params) -> None:
        """Take past global models back."""
        past: dict[int, Params] = {}
        for name, value in state.items():
            age, _, key = name.partition("/")
            past.setdefault(int(age), {})[key] = value
        self._past = [past[age] for age in sorted(past)]


class FedGucciRule(ClientRule):
    """Adds the mean loss between the model and the sets ``anchor_0``, the current global model, ``anchor_1``, ...

    Parameters
    ----------
    parameters
        The entries between which points are taken.
    beta, points
        As in `FedGucci`.
    """

    def __init__(self, parameters: tuple[str, ...], beta: float, points: str) -> None:
        self._parameters = parameters
        self._beta = beta
        self._points = points

    def start(self, local: Local) -> Local:
        """Take the current global model as an anchor too."""
        current = {key: local.params[key] for key in self._parameters}
        return replace(local, sets={**local.sets, "anchor_0": current})

    def draw(self, rng: np.random.Generator, sets: Sets) -> Params:
        """Draw a point for each anchor."""
        count = len(_anchors(sets))
        points = rng.uniform(size=count) if self._points == "random" else np.full(count, 0.5)
        return {"points": torch.from_numpy(points)}

    def loss(self, step: Step) -> Tensor:
        """Return the model's loss plus beta times the mean loss at the points."""
        loss = step.cross_entropy(step.logits(step.params))
        anchors = _anchors(step.sets)
        for anchor, t in zip(anchors, step.drawn["points"], strict=True):
            between = self._between(anchor, step.params, t)
            loss = loss + self._beta / len(anchors) * step.cross_entropy(step.logits(between))
        return loss

    def _between(self, anchor: Params, model: Params, t: Tensor) -> Params:
        """Return ``(1 - t) * anchor + t * model``; other entries are copies, as a pass may change them."""
        t = t.to(anchor[self._parameters[0]])
        others = {key: value.clone() for key, value in model.items() if key not in anchor}
        return others | {key: (1 - t) * value + t * model[key] for key, value in anchor.items()}


def _anchors(sets: Sets) -> list[Params]:
    return [sets[name] for name in sorted(sets) if name.startswith("anchor_")]
