"""FedAvg and pFedMe as the released code of pFedMe runs them (CharlieDinh/pFedMe): 20 mini-batches in a round."""

from collections.abc import Sequence

from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Count, LocalPlan, Option, Phase, Positive
from strategies import fedavg, pfedme


class FedAvg(fedavg.FedAvg):
    """FedAvg whose clients train on a number of mini-batches, however many examples they have."""

    steps: Count = Option(20, "Mini-batches in a round, which the released code calls local epochs.")
    lr: Positive = Option(0.02, "Step size of the clients.")

    def local_plan(self, server_round: int) -> LocalPlan:
        return LocalPlan((Phase(steps=self.steps, lr=self.lr),))


class PFedMe(pfedme.PFedMe):
    """pFedMe whose clients train on a number of mini-batches, averaged by examples as in the released code."""

    steps: Count = Option(20, "Mini-batches in a round, which the released code calls local epochs.")
    lr: Positive = Option(0.01, "Step size of the local model.")

    def local_plan(self, server_round: int) -> LocalPlan:
        return LocalPlan((Phase(steps=self.steps, lr=self.lr),))

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        return self.toward(self.average(updates), self.server_lr)
