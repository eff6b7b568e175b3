"""Personal models within reach of the global one."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fedsim.models.params import Params
from fedsim.strategy import (
    ClientRule,
    ClientUpdate,
    Count,
    Finished,
    Local,
    NonNegative,
    Option,
    Positive,
    Step,
    Strategy,
)


class PFedMeRule(ClientRule):
    """Lets SGD take the outer step of the model, and the inner steps as one step of the set ``theta``."""

    trained = ("theta",)
    plain_sgd = True
    proximal: float
    inner_steps: int
    personal_lr: float
    decay: float

    def start(self, local: Local) -> Local:
        return replace(local, sets={"personal": local.params, **local.sets, "theta": local.params})

    def loss(self, step: Step) -> Tensor:
        return step.loss_of(step.logits(step.sets["theta"]))

    def gradient(self, step: Step, gradients: Params) -> Params:
        # What makes SGD arrive where the inner steps do, the first of which takes the gradient of `loss`.
        start = {key: step.sets["theta"][key] for key in self.parameters}
        theta = self._inner_step(step, start, {key: gradients[f"theta/{key}"] for key in start})
        for _ in range(self.inner_steps - 1):
            theta = self._inner_step(step, theta, step.gradient(lambda values: self._loss(step, values), theta)[0])
        outer = {key: self.proximal * (step.params[key] - value) for key, value in theta.items()}
        return outer | {f"theta/{key}": (start[key] - value) / step.lr for key, value in theta.items()}

    def finish(self, local: Local, started: Local) -> Finished:
        theta = local.sets["theta"]
        model = {key: value if key in self.parameters else theta[key] for key, value in local.params.items()}
        return Finished(model, kept={"personal": theta})

    def personalised(self, local: Local) -> Params:
        return local.sets["personal"]

    def _loss(self, step: Step, theta: Params) -> Tensor:
        # Statistics have been counted once for this mini-batch; a gradient may not change what it did not make.
        others = {key: value.clone() for key, value in step.sets["theta"].items() if key not in theta}
        return step.loss_of(step.logits(others | theta))

    def _inner_step(self, step: Step, theta: Params, slopes: Params) -> Params:
        pull, decay, lr = self.proximal, self.decay, self.personal_lr
        return {
            key: value - lr * (slopes[key] + pull * (value - step.params[key]) + decay * value)
            for key, value in theta.items()
        }


class PFedMe(Strategy):
    """Pull the global model to personal ones that solve a proximal problem on each mini-batch: pFedMe.

    References
    ----------
    Dinh et al. 2020, Personalized federated learning with Moreau envelopes, arXiv 2006.08848, algorithm 1.

    Notes
    -----
    It is defined for plain SGD, without momentum. The local model w goes from w to w - eta lambda (w - theta) after
    each mini-batch, eta being ``local.lr``: with lambda eta above 1 it overshoots. The personal model theta begins each
    round as the global one and continues from one mini-batch to the next, and it decays, as in the authors' code. The
    mean is over clients, as in the paper; their code weights by examples. What is evaluated is the theta of the
    client's last mini-batch, and the global model of a client that never trained. Running statistics are those of
    theta. A client passes K times the examples of FedAvg.
    """

    client_rule = PFedMeRule
    proximal: Positive = Option(
        15.0, "Weight of the distance of the personal from the local model, the paper's lambda."
    )
    inner_steps: Count = Option(5, "Gradient steps on each mini-batch for the personal model, the paper's K.")
    personal_lr: Positive = Option(0.01, "Step size of these steps.")
    decay: NonNegative = Option(0.001, "Weight decay of these steps.")
    server_lr: Positive = Option(1.0, "Share of the way from the old parameters to the mean, the paper's beta.")

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        return self.toward(self.average(updates, [1.0] * len(updates)), self.server_lr)
