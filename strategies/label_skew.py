"""Losses for clients whose labels are skewed: FedNTD and FedLC."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from fedsim.strategy import ClientRule, Local, NonNegative, Option, Positive, Step, Strategy
from strategies.reference import reference


class FedNtdRule(ClientRule):
    """Distils the set ``received``, the global model, into the client's model on all classes but the true one."""

    cross_entropy_only = True
    beta: float
    temperature: float

    def start(self, local: Local) -> Local:
        return replace(local, sets={**local.sets, "received": local.params})

    def loss(self, step: Step) -> Tensor:
        logits, received = step.logits(step.params), step.sets["received"]
        taught = step.network.logits(reference(step, received, self.parameters), step.inputs).detach()
        own, others = (_not_true(each, step.targets) / self.temperature for each in (logits, taught))
        apart = kl_div(own.log_softmax(-1), others.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        return step.cross_entropy(logits) + self.beta * self.temperature**2 * step.mean(apart)


class FedNtd(Strategy, shared="all"):
    """Keep what the global model says about the classes that an example does not have: FedNTD.

    References
    ----------
    Lee et al. 2022, Preservation of the global knowledge by not-true distillation in federated learning,
    arXiv 2106.03097, equation 4.

    Notes
    -----
    The divergence is taken from the client's distribution over the other classes to the global model's, times the
    squared temperature, as in the authors' code. The global model normalises by the mini-batch's statistics.
    """

    client_rule = FedNtdRule
    beta: NonNegative = Option(1.0, "Weight of the distillation; 0 is FedAvg.")
    temperature: Positive = Option(1.0, "Temperature of both distributions; the authors use 1 and 3.")


class FedLcRule(ClientRule):
    """Lowers each logit by ``margins``, which are larger for classes of which the client has few examples."""

    cross_entropy_only = True
    tau: float
    absent_count: float

    def start(self, local: Local) -> Local:
        classes = local.logits(local.params, local.inputs[:1]).shape[1]
        counts = torch.bincount(local.labels, minlength=classes).to(local.params[self.parameters[0]].dtype)
        margins = self.tau * counts.clamp(min=self.absent_count) ** -0.25
        return replace(local, sets={**local.sets, "classes": {"margins": margins}})

    def loss(self, step: Step) -> Tensor:
        logits, margins = step.logits(step.params), step.sets["classes"]["margins"]
        # Of sequences, classes are the second dimension.
        return step.cross_entropy(logits - margins.view(-1, *[1] * (logits.dim() - 2)))


class FedLc(Strategy, shared="all"):
    """Train with larger margins for a client's rare classes: FedLC.

    References
    ----------
    Zhang et al. 2022, Federated learning with label distribution skew via logits calibration, arXiv 2209.00189,
    equation 8.

    Notes
    -----
    A class's logit is lowered by tau n^(-1/4) for n examples. A class that a client lacks counts ``absent_count``
    examples, and its logit hardly learns.
    """

    client_rule = FedLcRule
    tau: NonNegative = Option(1.0, "Size of the margins; 0 is FedAvg.")
    absent_count: Positive = Option(1e-8, "Count of a class that a client lacks, for 0^(-1/4).")


def _not_true(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the logits of all classes but the target's, shape [..., classes - 1]."""
    by_row, true = logits.movedim(1, -1), targets.clamp(min=0)[..., None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(*true.shape[:-1], -1)
    return by_row.gather(-1, others + (others >= true).long())
