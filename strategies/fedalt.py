"""Clients train personal and shared layers one after the other, or together."""

from fedsim.strategy import Count, LocalPlan, Option, Phase, Strategy
from strategies.parts import two_parts


class FedSim(Strategy):
    """Average some layers; clients train them together with their personal ones: FedSim.

    References
    ----------
    Pillutla et al. 2022, Federated learning with partial model personalization, arXiv 2204.03809, LocalSim.

    Notes
    -----
    With the head personal it is FedPer. Both parts have the step size of ``local.lr``. In the end the paper fine-tunes
    the personal layers.
    """

    personal: str = Option("head", "Layers that clients keep: in the paper the output layer, input layer or adapters.")

    def prepare(self) -> None:
        self.own, self.group = two_parts(self.layers, "personal", self.personal)

    def fine_tuning(self) -> str:
        return self.own.name


class FedAlt(FedSim):
    """Average some layers; clients train their personal ones first, then the shared ones: FedAlt.

    References
    ----------
    Pillutla et al. 2022, Federated learning with partial model personalization, arXiv 2204.03809, LocalAlt.

    Notes
    -----
    With the head personal it is FedRep except for its defaults. Clients pass their examples twice as often as with
    `FedSim` and the same ``local.epochs``. In the end the paper fine-tunes the personal layers.
    """

    personal_epochs: Count | None = Option(None, "Epochs of the personal layers; local.epochs if not given.")
    shared_epochs: Count | None = Option(None, "Epochs of the shared layers; local.epochs if not given.")

    def local_plan(self, server_round: int) -> LocalPlan:
        personal = Phase(self.own.name, epochs=self.personal_epochs)
        return LocalPlan((personal, Phase(self.group.name, epochs=self.shared_epochs)))
