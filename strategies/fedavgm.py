"""The server's steps have momentum."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Strategy


class FedAvgM(Strategy):
    """Move the global model towards the average by steps with momentum: FedAvgM.

    Parameters
    ----------
    server_lr
        Step size of the server.
    server_momentum
        Share of the last step that the next one keeps, in [0, 1); with 0 and a step size of 1 it is FedAvg.
    shared
        The layer group that is averaged, in the layer language.

    Raises
    ------
    ValueError
        If ``server_lr`` or ``server_momentum`` is out of range, or the group cannot be read.

    References
    ----------
    Hsu et al. 2019, Measuring the effects of non-identical data distribution, arXiv 1909.06335.

    Notes
    -----
    v <- momentum v + (average - w), w <- w + lr v, as in Flower. Each parameter has its own v, which changes only in
    rounds in which it is averaged. Running statistics are averaged: momentum could make a variance negative.
    """

    def __init__(
        self,
        model: nn.Module,
        server_lr: float = 1.0,
        server_momentum: float = 0.9,
        shared: str = "all",
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        if server_lr <= 0:
            raise ValueError(f"server_lr = {server_lr} must be greater than 0; 1 goes to the average")
        if not 0 <= server_momentum < 1:
            raise ValueError(f"server_momentum = {server_momentum} must be at least 0 and less than 1; 0 has none")
        self._lr, self._momentum = server_lr, server_momentum
        self._shared = self.layers.group(shared)
        self._velocity: Params = {}

    def shared(self, server_round: int) -> LayerGroup:
        """Share the same group in each round."""
        return self._shared

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Return the global model's parameters after a step, and averaged buffers."""
        mean = super().aggregate(server_round, updates)
        parameters = self.layers.keys(self.layers.names, buffers=False)
        moved = {}
        for key in [key for key in mean if key in parameters]:
            # After a restart, memory and global model come from the disk, and updates perhaps from a GPU.
            before = self.global_model[key].to(mean[key].device, torch.float64)
            last = self._velocity.get(key, torch.zeros_like(before)).to(before.device)
            velocity = self._momentum * last + (mean[key] - before)
            self._velocity[key] = velocity
            moved[key] = before + self._lr * velocity
        return mean | moved

    def state(self) -> Params:
        """Return the velocity of each parameter that was averaged."""
        return dict(self._velocity)

    def load_state(self, state: Params) -> None:
        """Take the velocities."""
        self._velocity = dict(state)
