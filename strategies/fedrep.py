"""Clients train their own head first, then the shared body."""

from fedsim.strategy import Count, CountOrZero, LocalPlan, Option, Phase, Strategy
from strategies.parts import two_parts


class FedRep(Strategy):
    """Average the body; clients train their own head on it, then the body under that head: FedRep.

    References
    ----------
    Collins et al. 2021, Exploiting shared representations for personalized federated learning, arXiv 2102.07078.

    Notes
    -----
    10 head epochs and 1 body epoch are those of the authors' CIFAR-10 experiments; ``local.epochs`` has no effect. In
    the end they train the heads of all clients again, which is why fine-tuning trains the head. A round passes
    head_epochs + body_epochs times the examples, where a table's FedAvg often passes them once. FL-bench's FedRep never
    trains the head with one local epoch, PFLlib's trains the head for one epoch and the body for as many as FedAvg.
    """

    head: str = Option("head", "Personal layers; all others are the body.")
    head_epochs: CountOrZero = Option(10, "Epochs of the head alone; 0 trains the body only.")
    body_epochs: Count = Option(1, "Epochs of the body alone.")

    def prepare(self) -> None:
        self.own, self.group = two_parts(self.layers, "head", self.head)

    def local_plan(self, server_round: int) -> LocalPlan:
        head = [Phase(self.own.name, epochs=self.head_epochs)] if self.head_epochs else []
        return LocalPlan((*head, Phase(self.group.name, epochs=self.body_epochs)))

    def fine_tuning(self) -> str:
        return self.own.name
