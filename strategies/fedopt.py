"""The server steps towards the average as an optimiser does: FedAvgM, FedAdam, FedYogi and FedAdagrad."""

from collections.abc import Sequence

from torch import Tensor

from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Decay, Option, Positive, Strategy


class ServerOptimiser(Strategy, shared="all"):
    """Step along the distance from the global model to the average; average running statistics, which no step suits."""

    server_lr: Positive = Option(0.1, "Step size of the server.")

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        mean = self.average(updates)
        before = {key: self.global_model[key].double() for key in mean if key in self.parameters}
        return mean | {key: value + self.step_of(key, mean[key] - value) for key, value in before.items()}

    def step_of(self, key: str, distance: Tensor) -> Tensor:
        """Return the step of a parameter; its moments change only in rounds in which it is averaged."""
        raise NotImplementedError


class FedAvgM(ServerOptimiser):
    """Move the global model towards the average by steps with momentum, as Flower does: FedAvgM.

    References
    ----------
    Hsu et al. 2019, Measuring the effects of non-identical data distribution, arXiv 1909.06335.
    """

    server_lr = 1.0
    server_momentum: Decay = Option(0.9, "Share of the last step that the next one keeps; 0 has none.")

    def step_of(self, key: str, distance: Tensor) -> Tensor:
        self.memory[key] = self.server_momentum * self.memory.get(key, 0) + distance
        return self.server_lr * self.memory[key]


class FedAdagrad(ServerOptimiser):
    """Move the global model by Adagrad, with the average's distance from it as the gradient: FedAdagrad.

    References
    ----------
    Reddi et al. 2021, Adaptive federated optimization, arXiv 2003.00295, algorithm 2: without the correction for bias
    of Flower's FedAdam; the second moment begins at tau^2, the least that is allowed there, Flower's at 0.
    """

    beta_1: Decay = Option(0.0, "Decay of the first moment.")
    tau: Positive = Option(1e-3, "Degree of adaptivity: the smaller, the more alike are the steps of all parameters.")

    def step_of(self, key: str, distance: Tensor) -> Tensor:
        first, second = (self.memory.setdefault(name, {}) for name in ("first", "second"))
        first[key] = self.beta_1 * first.get(key, 0) + (1 - self.beta_1) * distance
        second[key] = self.second_moment(second.get(key, self.tau**2), distance.square())
        return self.server_lr * first[key] / (second[key].sqrt() + self.tau)

    def second_moment(self, last: Tensor | float, squared: Tensor) -> Tensor:
        return last + squared


class FedAdam(FedAdagrad):
    """Move the global model by Adam, with the average's distance from it as the gradient: FedAdam."""

    beta_1 = 0.9
    beta_2: Decay = Option(0.99, "Decay of the second moment; FL-bench's is 0.999.")

    def second_moment(self, last: Tensor | float, squared: Tensor) -> Tensor:
        return self.beta_2 * last + (1 - self.beta_2) * squared


class FedYogi(FedAdam):
    """Move the global model by Yogi, with the average's distance from it as the gradient: FedYogi."""

    server_lr = 0.01

    def second_moment(self, last: Tensor | float, squared: Tensor) -> Tensor:
        return last - (1 - self.beta_2) * squared * (last - squared).sign()
