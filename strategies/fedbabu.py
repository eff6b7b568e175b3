"""The head stays as it was drawn."""

from fedsim.strategy import LocalPlan, Option, Phase, Strategy
from strategies.parts import two_parts


class FedBabu(Strategy):
    """Train and average the body under a head that stays as it was drawn, until fine-tuning: FedBABU.

    References
    ----------
    Oh et al. 2022, FedBABU: toward enhanced representation for federated image classification, arXiv 2106.06042.

    Notes
    -----
    All clients have the same head, unless ``model.initial = "own"`` draws one for each, which is not the paper's. The
    paper reports accuracy before fine-tuning and after 5 epochs of it; PFLlib's default is 10.
    """

    head: str = Option("head", "Layers that stay as they are; all others are the body.")
    fine_tuned: str = Option("all", "Layers that fine-tuning trains; the paper finds all of them best.")

    def prepare(self) -> None:
        _, self.group = two_parts(self.layers, "head", self.head)
        self.layers.group(self.fine_tuned)

    def local_plan(self, server_round: int) -> LocalPlan:
        return LocalPlan((Phase(self.group.name),))

    def fine_tuning(self) -> str:
        return self.fine_tuned
