"""The head stays as it was drawn."""

from typing import Any

from torch import nn

from fedsim.models.layers import LayerGroup
from fedsim.strategy import LocalPlan, Phase, Strategy
from strategies.parts import two_parts


class FedBabu(Strategy):
    """Train and average the body under a head that stays as it was drawn, until fine-tuning: FedBABU.

    Parameters
    ----------
    head
        The layers that stay as they are, in the layer language; all others are the body.
    fine_tuned
        The layers that fine-tuning trains; the paper finds all of them best.

    Raises
    ------
    ValueError
        If there is no head, head or body has nothing to train, or ``fine_tuned`` cannot be read.

    References
    ----------
    Oh et al. 2022, FedBABU: toward enhanced representation for federated image classification, arXiv 2106.06042.

    Notes
    -----
    All clients have the same head, unless ``model.initial = "own"`` draws one for each, which is not the paper's. The
    paper reports accuracy before fine-tuning and after 5 epochs of it; PFLlib's default is 10.
    """

    def __init__(self, model: nn.Module, head: str = "head", fine_tuned: str = "all", **settings: Any) -> None:
        super().__init__(model, **settings)
        _, self._body = two_parts(self.layers, "head", head)
        self._plan = LocalPlan((Phase(self._body.name),))
        self._fine_tuned = self.layers.group(fine_tuned)

    def shared(self, server_round: int) -> LayerGroup:
        """Share the body."""
        return self._body

    def local_plan(self, server_round: int) -> LocalPlan:
        """Train the body."""
        return self._plan

    def fine_tuning(self) -> str:
        """Fine-tune the layers that were chosen."""
        return self._fine_tuned.name
