"""Clients train personal and shared layers one after the other, or together."""

from typing import Any

from torch import nn

from fedsim.models.layers import LayerGroup
from fedsim.strategy import LocalPlan, Phase, Strategy
from strategies.parts import two_parts


class FedAlt(Strategy):
    """Average some layers; clients train their personal ones first, then the shared ones: FedAlt.

    Parameters
    ----------
    personal
        The layers that each client keeps, in the layer language: in the paper the output layer, the input layer or
        adapters.
    personal_epochs, shared_epochs
        Passes over the client's examples for the personal and for the shared layers; ``local.epochs`` each if not
        given.

    Raises
    ------
    ValueError
        If a number of epochs is not positive, or one of the parts has nothing to train.

    References
    ----------
    Pillutla et al. 2022, Federated learning with partial model personalization, arXiv 2204.03809, LocalAlt.

    Notes
    -----
    With the head personal it is FedRep but for its defaults. Clients pass their examples twice as often as with
    `FedSim` and the same ``local.epochs``. In the end the paper fine-tunes the personal layers.
    """

    def __init__(
        self,
        model: nn.Module,
        personal: str = "head",
        personal_epochs: int | None = None,
        shared_epochs: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        for name, epochs in (("personal_epochs", personal_epochs), ("shared_epochs", shared_epochs)):
            if epochs is not None and epochs < 1:
                raise ValueError(f"{name} = {epochs} must be at least 1; leave it out for local.epochs")
        self._personal, self._shared = two_parts(self.layers, "personal", personal)
        personal_phase = Phase(self._personal.name, epochs=personal_epochs)
        self._plan = LocalPlan((personal_phase, Phase(self._shared.name, epochs=shared_epochs)))

    def shared(self, server_round: int) -> LayerGroup:
        """Share all layers that are not personal."""
        return self._shared

    def local_plan(self, server_round: int) -> LocalPlan:
        """Train the personal layers, then the shared ones."""
        return self._plan

    def fine_tuning(self) -> str:
        """Fine-tune the personal layers."""
        return self._personal.name


class FedSim(Strategy):
    """Average some layers; clients train them together with their personal ones: FedSim.

    Parameters
    ----------
    personal
        The layers that each client keeps, in the layer language: in the paper the output layer, the input layer or
        adapters.

    Raises
    ------
    ValueError
        If one of the parts has nothing to train.

    References
    ----------
    Pillutla et al. 2022, Federated learning with partial model personalization, arXiv 2204.03809, LocalSim.

    Notes
    -----
    With the head personal it is FedPer. Both parts have the step size of ``local.lr``. In the end the paper fine-tunes
    the personal layers.
    """

    def __init__(self, model: nn.Module, personal: str = "head", **settings: Any) -> None:
        super().__init__(model, **settings)
        self._personal, self._shared = two_parts(self.layers, "personal", personal)

    def shared(self, server_round: int) -> LayerGroup:
        """Share all layers that are not personal."""
        return self._shared

    def fine_tuning(self) -> str:
        """Fine-tune the personal layers."""
        return self._personal.name
