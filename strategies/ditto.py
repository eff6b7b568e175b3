"""A personal model of each client, pulled towards the global one."""

from dataclasses import replace

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, Count, Finished, Local, LocalPlan, NonNegative, Option, Phase, Strategy


class DittoRule(ClientRule):
    """Keeps the set ``personal``, a whole model, which begins as the global one, and evaluates it."""

    def start(self, local: Local) -> Local:
        return replace(local, sets={"personal": local.params, **local.sets})

    def finish(self, local: Local, started: Local) -> Finished:
        return Finished(local.params, kept={"personal": local.sets["personal"]})

    def personalised(self, local: Local) -> Params:
        return local.sets["personal"]


class Ditto(Strategy):
    """Train a personal model next to FedAvg, pulled towards the global model as it came: Ditto.

    References
    ----------
    Li et al. 2021, Ditto: fair and robust federated learning through personalization, arXiv 2012.04221, algorithm 1.

    Notes
    -----
    What is evaluated is the personal model, which never leaves the client. It begins as the global model that the
    client takes in its first round. PFLlib's default for lambda is 0, which pulls nothing. A client trains two models,
    so it passes twice as many examples as with FedAvg.
    """

    client_rule = DittoRule
    proximal: NonNegative = Option(1.0, "Weight of the pull, the paper's lambda; 0 is local training next to FedAvg.")
    personal_epochs: Count | None = Option(None, "Epochs of the personal model; as many as of the other if not given.")

    def local_plan(self, server_round: int) -> LocalPlan:
        # The personal model first, while the other one is still the global model.
        personal = Phase(epochs=self.personal_epochs, proximal=self.proximal, trains="personal", toward="model")
        return LocalPlan((personal, Phase()))
