"""A generic and a personal head on one body."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from fedsim.models.params import Params
from fedsim.strategy import Finished, Local, Option, Positive, Step, Strategy
from strategies.parts import HeadRule, linear_head


class FedRodRule(HeadRule):
    """Trains the set ``personal_head`` with the model; ``classes`` holds the client's class counts for itself."""

    trained = ("personal_head",)
    cross_entropy_only = True
    absent_count: float

    def start(self, local: Local) -> Local:
        generic = {key: value for key, value in local.params.items() if key.rpartition(".")[0] == self._head}
        weight = generic[f"{self._head}.weight"]
        counts = torch.bincount(local.labels, minlength=len(weight)).to(weight.dtype)
        zeros = {key.rpartition(".")[2]: torch.zeros_like(value) for key, value in generic.items()}
        classes = {"log_counts": counts.clamp(min=self.absent_count).log()}
        return replace(local, sets={"personal_head": zeros, **local.sets, "classes": classes})

    def loss(self, step: Step) -> Tensor:
        logits, features = step.logits_and_features(step.params, self._head)
        log_counts = step.sets["classes"]["log_counts"]
        log_counts = log_counts.view(-1, *[1] * (logits.dim() - 2))  # of sequences, classes are the second dimension
        personal = linear(features.detach(), **step.sets["personal_head"]).movedim(-1, 1)
        return step.cross_entropy(logits + log_counts) + step.cross_entropy(logits.detach() + personal)

    def finish(self, local: Local, started: Local) -> Finished:
        return Finished(local.params, kept={"personal_head": local.sets["personal_head"]})

    def personalised(self, local: Local) -> Params:
        personal = local.sets["personal_head"]
        return local.params | {f"{self._head}.{k}": local.params[f"{self._head}.{k}"] + v for k, v in personal.items()}


class FedRod(Strategy):
    """Average a body and a head that are trained as if classes were balanced; add a personal head: FedRoD.

    References
    ----------
    Chen and Chao 2022, On bridging generic and personalized federated learning for image classification,
    arXiv 2107.00778, with linear personal heads.

    Notes
    -----
    Body and generic head descend the balanced softmax loss (Ren et al. 2020, arXiv 2007.10740) of the client's class
    counts. The personal head never leaves the client; it descends the cross-entropy of the sum of both heads' logits,
    on features and generic logits that take no gradient of it, and begins with zeros: untrained it adds nothing. PFLlib
    begins with a copy of the generic head. What is evaluated is the model with the sum of both heads.
    """

    client_rule = FedRodRule
    head: str = Option("head", "Linear layer that is the head.")
    absent_count: Positive = Option(1e-8, "Count of a class that a client lacks in its balanced loss, for log 0.")

    def prepare(self) -> None:
        linear_head(self.model, self.layers, "head", self.head)
