"""Clients train their own head first, then the shared body."""

from typing import Any

from torch import nn

from fedsim.models.layers import LayerGroup
from fedsim.strategy import LocalPlan, Phase, Strategy
from strategies.parts import two_parts


class FedRep(Strategy):
    """Average the body; clients train their own head on it, then the body under that head: FedRep.

    Parameters
    ----------
    head
        The personal layers, in the layer language; all others are the body.
    head_epochs
        Passes over the client's examples for the head alone; 0 trains the body only.
    body_epochs
        Passes for the body alone.

    Raises
    ------
    ValueError
        If a number of epochs is out of range, there is no head, or head or body has nothing to train.

    References
    ----------
    Collins et al. 2021, Exploiting shared representations for personalized federated learning, arXiv 2102.07078.

    Notes
    -----
    10 head epochs and 1 body epoch are those of the authors' CIFAR-10 experiments; ``local.epochs`` plays no part. In
    the end they train the heads of all clients again, which is why fine-tuning trains the head. A round passes
    head_epochs + body_epochs times the examples, where a table's FedAvg often passes them once. FL-bench's FedRep never
    trains the head with one local epoch, PFLlib's trains the head for one epoch and the body for as many as FedAvg.
    """

    def __init__(
        self, model: nn.Module, head: str = "head", head_epochs: int = 10, body_epochs: int = 1, **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        if head_epochs < 0:
            raise ValueError(f"head_epochs = {head_epochs} must not be negative; 0 trains the body only")
        if body_epochs < 1:
            raise ValueError(f"body_epochs = {body_epochs} must be at least 1, or the body would never change")
        self._head, self._body = two_parts(self.layers, "head", head)
        phases = [Phase(self._head.name, epochs=head_epochs)] if head_epochs else []
        self._plan = LocalPlan((*phases, Phase(self._body.name, epochs=body_epochs)))

    def shared(self, server_round: int) -> LayerGroup:
        """Share the body."""
        return self._body

    def local_plan(self, server_round: int) -> LocalPlan:
        """Train the head, then the body."""
        return self._plan

    def fine_tuning(self) -> str:
        """Fine-tune the head."""
        return self._head.name
