"""The server goes beyond the average where the clients disagree."""

from collections.abc import Sequence

from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, NonNegative, Option, Strategy


class FedExp(Strategy, shared="all"):
    """Extrapolate the mean update further, the less alike the clients' updates are: FedExP.

    References
    ----------
    Jhunjhunwala, Wang and Joshi 2023, FedExP: speeding up federated averaging via extrapolation, arXiv 2301.09604,
    algorithm 1.

    Notes
    -----
    The server's step size is max(1, sum of ||update_k||^2 / (2 M (||mean update||^2 + epsilon))) for M participants.
    The mean is over clients, not over examples, as in the paper, which evaluates the mean of the last two rounds'
    models; here it is the last one. Running statistics are averaged as they are.
    """

    epsilon: NonNegative = Option(1e-3, "Added to the squared norm of the mean update.")

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        mean = self.average(updates, [1.0] * len(updates))
        apart = sum(self._square(update.shared) for update in updates)
        together = 2 * len(updates) * (self._square(mean) + self.epsilon)
        return self.toward(mean, max(1.0, apart / together) if together else 1.0)

    def _square(self, model: Params) -> float:
        """Return the squared distance of the parameters from the global model."""
        return sum(
            float((value.double() - self.global_model[key].double()).square().sum())
            for key, value in model.items()
            if key in self.parameters
        )
