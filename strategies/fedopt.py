"""The server's steps are those of an adaptive optimiser."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Strategy


class FedOpt(Strategy):
    """Move the global model by an adaptive optimiser, with the average's distance from it as the gradient.

    Each parameter has moments of its own, m from 0 and v from tau^2, which change only in rounds in which it is
    averaged: m <- beta_1 m + (1 - beta_1) d for the distance d, v as `second_moment` says, and
    w <- w + lr m / (sqrt(v) + tau). Running statistics are averaged: a step could make a variance negative.

    Parameters
    ----------
    server_lr
        Step size of the server.
    beta_1
        Decay of the first moment, in [0, 1).
    tau
        Degree of adaptivity: the smaller, the more alike are the steps of all parameters.
    shared
        The layer group that is averaged, in the layer language.

    Raises
    ------
    ValueError
        If a number is out of range, or the group cannot be read.
    """

    def __init__(
        self, model: nn.Module, server_lr: float, beta_1: float, tau: float, shared: str, **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        for name, value in (("server_lr", server_lr), ("tau", tau)):
            if value <= 0:
                raise ValueError(f"{name} = {value} must be greater than 0, such as 0.1 or 0.001")
        check_decay("beta_1", beta_1)
        self._lr, self._beta_1, self._tau = server_lr, beta_1, tau
        self._shared = self.layers.group(shared)
        self._first: Params = {}
        self._second: Params = {}

    def shared(self, server_round: int) -> LayerGroup:
        """Share the same group in each round."""
        return self._shared

    def second_moment(self, moment: Tensor, squared: Tensor) -> Tensor:
        """Return the new second moment from the last one and the squared distance."""
        raise NotImplementedError

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Return the global model's parameters after a step, and averaged buffers."""
        mean = super().aggregate(server_round, updates)
        parameters = self.layers.keys(self.layers.names, buffers=False)
        moved = {}
        for key in [key for key in mean if key in parameters]:
            # After a restart, memory and global model come from the disk, and updates perhaps from a GPU.
            before = self.global_model[key].to(mean[key].device, torch.float64)
            distance = mean[key] - before
            first = self._first.get(key, torch.zeros_like(before)).to(before.device)
            second = self._second.get(key, torch.full_like(before, self._tau**2)).to(before.device)
            self._first[key] = self._beta_1 * first + (1 - self._beta_1) * distance
            self._second[key] = self.second_moment(second, distance.square())
            moved[key] = before + self._lr * self._first[key] / (self._second[key].sqrt() + self._tau)
        return mean | moved

    def state(self) -> Params:
        """Return both moments of each parameter that was averaged."""
        first = {f"first/{key}": value for key, value in self._first.items()}
        return first | {f"second/{key}": value for key, value in self._second.items()}

    def load_state(self, state: Params) -> None:
        """Take both moments."""
        self._first, self._second = (
            {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
            for name in ("first/", "second/")
        )


class FedAdam(FedOpt):
    """Move the global model by Adam, with the average's distance from it as the gradient: FedAdam.

    Parameters
    ----------
    server_lr
        Step size of the server.
    beta_1, beta_2
        Decay of the first and the second moment, in [0, 1).
    tau
        Degree of adaptivity: the smaller, the more alike are the steps of all parameters.
    shared
        The layer group that is averaged, in the layer language.

    Raises
    ------
    ValueError
        If a number is out of range, or the group cannot be read.

    References
    ----------
    Reddi et al. 2021, Adaptive federated optimization, arXiv 2003.00295, algorithm 2.

    Notes
    -----
    As in the paper, moments are not corrected for their bias, and the second one begins at tau^2, the least that the
    paper allows. Flower's FedAdam begins at 0 and multiplies the step size by sqrt(1 - beta_2^(t + 1)) /
    (1 - beta_1^(t + 1)) in round t. FL-bench's beta_2 is 0.999.
    """

    def __init__(
        self,
        model: nn.Module,
        server_lr: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        shared: str = "all",
        **settings: Any,
    ) -> None:
        super().__init__(model, server_lr, beta_1, tau, shared, **settings)
        check_decay("beta_2", beta_2)
        self._beta_2 = beta_2

    def second_moment(self, moment: Tensor, squared: Tensor) -> Tensor:
        """Return the decaying mean of the squares."""
        return self._beta_2 * moment + (1 - self._beta_2) * squared


class FedYogi(FedOpt):
    """Move the global model by Yogi, with the average's distance from it as the gradient: FedYogi.

    Parameters
    ----------
    server_lr
        Step size of the server.
    beta_1, beta_2
        Decay of the first and the second moment, in [0, 1).
    tau
        Degree of adaptivity: the smaller, the more alike are the steps of all parameters.
    shared
        The layer group that is averaged, in the layer language.

    Raises
    ------
    ValueError
        If a number is out of range, or the group cannot be read.

    References
    ----------
    Reddi et al. 2021, Adaptive federated optimization, arXiv 2003.00295, algorithm 2.

    Notes
    -----
    The second moment begins at tau^2, the least that the paper allows; Flower's begins at 0.
    """

    def __init__(
        self,
        model: nn.Module,
        server_lr: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        shared: str = "all",
        **settings: Any,
    ) -> None:
        super().__init__(model, server_lr, beta_1, tau, shared, **settings)
        check_decay("beta_2", beta_2)
        self._beta_2 = beta_2

    def second_moment(self, moment: Tensor, squared: Tensor) -> Tensor:
        """Return the moment, moved towards the square by a share of the square."""
        return moment - (1 - self._beta_2) * squared * (moment - squared).sign()


class FedAdagrad(FedOpt):
    """Move the global model by Adagrad, with the average's distance from it as the gradient: FedAdagrad.

    Parameters
    ----------
    server_lr
        Step size of the server.
    beta_1
        Decay of the first moment, in [0, 1); the paper's experiments have none.
    tau
        Degree of adaptivity: the smaller, the more alike are the steps of all parameters.
    shared
        The layer group that is averaged, in the layer language.

    Raises
    ------
    ValueError
        If a number is out of range, or the group cannot be read.

    References
    ----------
    Reddi et al. 2021, Adaptive federated optimization, arXiv 2003.00295, algorithm 2.

    Notes
    -----
    The second moment begins at tau^2, the least that the paper allows; Flower's begins at 0.
    """

    def __init__(
        self,
        model: nn.Module,
        server_lr: float = 0.1,
        beta_1: float = 0.0,
        tau: float = 1e-3,
        shared: str = "all",
        **settings: Any,
    ) -> None:
        super().__init__(model, server_lr, beta_1, tau, shared, **settings)

    def second_moment(self, moment: Tensor, squared: Tensor) -> Tensor:
        """Return the sum of the squares."""
        return moment + squared


def check_decay(name: str, value: float) -> None:
    """Check that a decay is in [0, 1).

    Raises
    ------
    ValueError
        If it is not.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} = {value} must be at least 0 and less than 1; 0 remembers nothing")
