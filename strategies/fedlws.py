"""The server shrinks the average, each layer by how much the clients disagree in it."""

from collections.abc import Sequence

from fedsim.models.distance import norm
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, NonNegative, Option, Strategy


class FedLws(Strategy, shared="all"):
    """Shrink each averaged layer more, the further apart the clients' updates of it are: FedLWS.

    References
    ----------
    Shi et al. 2025, FedLWS: federated learning with adaptive layer-wise weight shrinking, arXiv 2503.15111.

    Notes
    -----
    With g_k = w_k - w_t and tau = beta times the mean of ||g_k - mean g||, at least ``least`` and at most ``most``, a
    layer becomes gamma times the average, gamma = ||w_t|| / (||w_t|| + tau ||average - w_t||). The mean of g is over
    clients, the average by examples. A layer here is a weight with its bias, and each normalisation layer is one; the
    authors' code cuts the model at biases and shrinks running statistics too. No data are needed.
    """

    beta: NonNegative = Option(0.03, "Factor of the distance between the clients' updates.")
    least: NonNegative = Option(0.01, "Smallest tau; with 0 and beta = 0 it is FedAvg.")
    most: NonNegative = Option(0.2, "Largest tau.")

    def prepare(self) -> None:
        if self.least > self.most:
            raise ValueError(f"least = {self.least} must be at most most = {self.most}")

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        averaged = self.average(updates)
        mean = self.average(updates, [1.0] * len(updates))
        for layer in self.layers:
            keys = [key for key in layer.parameters if key in averaged]
            before = [self.global_model[key] for key in keys]
            # What all updates start from cancels in their distance from the mean.
            apart = sum(norm(update.shared[key] - mean[key] for key in keys) for update in updates) / len(updates)
            tau = min(max(self.beta * apart, self.least), self.most)
            size, moved = norm(before), norm(averaged[key] - old for key, old in zip(keys, before, strict=True))
            gamma = size / (size + tau * moved) if size else 1.0
            averaged |= {key: gamma * averaged[key] for key in keys}
        return averaged
