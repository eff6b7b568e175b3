"""A client's features stay near the global model's."""

from dataclasses import replace

from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from fedsim.models.params import Params
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
        near, far = (
            cosine_similarity(features.flatten(1), self._features(step, step.sets[name]).flatten(1), dim=1)
            for name in ("received", "previous")
        )
        # -log(e^a / (e^a + e^b)) is softplus(b - a).
        return step.loss_of(logits) + self.mu * step.mean(softplus((far - near) / self.temperature))

    def finish(self, local: Local, started: Local) -> Finished:
        return Finished(local.params, kept={"previous": local.params})

    def _features(self, step: Step, model: Params) -> Tensor:
        """Return the features of a model that takes no gradient."""
        still = reference(step, model, self.parameters)
        return step.network.logits_and_features(still, step.inputs, self._head)[1].detach()


class Moon(Strategy, shared="all"):
    """Pull each client's features towards the global model's, and away from those of its own last model: MOON.

    References
    ----------
    Li, He and Song 2021, Model-contrastive federated learning, arXiv 2103.16257, equation 3.

    Notes
    -----
    Features are the input of the head; the paper adds a projection head of two layers before it. In a client's first
    round its last model is the global one, so that the term is constant. The frozen models normalise by the
    mini-batch's statistics, as the trained one does. It takes two forward passes more per step.
    """

    client_rule = MoonRule
    head: str = Option("head", "Layer whose inputs are the features.")
    mu: NonNegative = Option(1.0, "Weight of the contrastive loss; 0 is FedAvg. The paper's grid: 0.1, 1, 5, 10.")
    temperature: Positive = Option(0.5, "Temperature of the contrastive loss.")

    def prepare(self) -> None:
        two_parts(self.layers, "head", self.head)
