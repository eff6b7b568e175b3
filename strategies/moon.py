"""A client's features stay near the global model's."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from fedsim.strategy import ClientRule, Finished, Local, NonNegative, Option, Positive, Step, Strategy
from strategies.parts import two_parts
from strategies.reference import reference


class MoonRule(ClientRule):
    """Compares features with those of the sets ``received``, the global model, and ``previous``, its own last one."""

    head: str
    mu: float
    temperature: float

    def prepare(self) -> None:
        self._head = two_parts(self.layers, "head", self.head)[0].layers[0]

    def start(self, local: Local) -> Local:
        return replace(local, sets={"previous": local.params, **local.sets, "received": local.params})

    def loss(self, step: Step) -> Tensor:
        logits, features = step.logits_and_features(step.params, self._head)
        still = [reference(step, step.sets[name], self.parameters) for name in ("received", "previous")]
        others = [step.network.logits_and_features(each, step.inputs, self._head)[1].detach() for each in still]
        own, *both = (_compared(each, step.real) for each in (features, *others))
        near, far = (cosine_similarity(own, each, dim=1) for each in both)
        # -log(e^a / (e^a + e^b)) is softplus(b - a).
        return step.loss_of(logits) + self.mu * step.mean(softplus((far - near) / self.temperature))

    def finish(self, local: Local, started: Local) -> Finished:
        return Finished(local.params, kept={"previous": local.params})


class Moon(Strategy, shared="all"):
    """Pull each client's features towards the global model's, and away from those of its own last model: MOON.

    References
    ----------
    Li, He and Song 2021, Model-contrastive federated learning, arXiv 2103.16257, equation 3.

    Notes
    -----
    Features are the input of the head; the paper adds a projection head of two layers before it. For sequences, only
    features at targets that count are compared, joined to one vector. In a client's first round its last model is the
    global one, so that the term is constant. The frozen models normalise by the mini-batch's statistics, as the trained
    one does. It takes two forward passes more per step.
    """

    client_rule = MoonRule
    head: str = Option("head", "Layer whose inputs are the features.")
    mu: NonNegative = Option(1.0, "Weight of the contrastive loss; 0 is FedAvg. The paper's grid: 0.1, 1, 5, 10.")
    temperature: Positive = Option(0.5, "Temperature of the contrastive loss.")

    def prepare(self) -> None:
        two_parts(self.layers, "head", self.head)


def _compared(features: Tensor, real: Tensor | None) -> Tensor:
    """Return each example's features as one row, in which those at targets that do not count, as padding, are 0."""
    if real is not None and real.shape == features.shape[:-1]:
        features = torch.where(real.unsqueeze(-1), features, 0)
    return features.flatten(1)
