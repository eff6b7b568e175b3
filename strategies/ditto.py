"""A personal model of each client, pulled towards the global one."""

from dataclasses import replace
from typing import Any

from torch import nn

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, Finished, Local, LocalPlan, Phase, Strategy


class Ditto(Strategy):
    """Train a personal model beside FedAvg, pulled towards the global model as it came: Ditto.

    Parameters
    ----------
    proximal
        Weight of the pull, the paper's lambda: 0 is local training beside FedAvg.
    personal_epochs
        Passes over the client's examples for the personal model; as many as for the other one if not given.

    Raises
    ------
    ValueError
        If ``proximal`` is negative or ``personal_epochs`` not positive.

    References
    ----------
    Li et al. 2021, Ditto: fair and robust federated learning through personalization, arXiv 2012.04221, algorithm 1.

    Notes
    -----
    What is evaluated is the personal model, which never leaves the client. It begins as the global model that the
    client takes in its first round. PFLlib's default for lambda is 0, which pulls nothing. A client trains two models,
    so it passes twice as many examples as with FedAvg.
    """

    def __init__(
        self, model: nn.Module, proximal: float = 1.0, personal_epochs: int | None = None, **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        if proximal < 0:
            raise ValueError(f"proximal = {proximal} must not be negative; 0 pulls nothing")
        if personal_epochs is not None and personal_epochs < 1:
            raise ValueError(f"personal_epochs = {personal_epochs} must be at least 1; leave it out for local.epochs")
        self._personal = Phase(epochs=personal_epochs, proximal=proximal, trains="personal", toward="model")

    def local_plan(self, server_round: int) -> LocalPlan:
        """Train the personal model first, while the other one is still the global model."""
        return LocalPlan((self._personal, Phase()))

    def client_rule(self) -> ClientRule:
        """Clients keep their personal model."""
        return DittoRule()


class DittoRule(ClientRule):
    """Keeps the set ``personal``, a whole model, and evaluates it."""

    def start(self, local: Local) -> Local:
        """Begin with the global model in the first round."""
        return replace(local, sets={"personal": local.params, **local.sets})

    def finish(self, local: Local, started: Local) -> Finished:
        """Keep the personal model."""
        return Finished(local.params, kept={"personal": local.sets["personal"]})

    def personalised(self, local: Local) -> Params:
        """Return the personal model."""
        return local.sets["personal"]
