"""Each client has a shift of its features, so that the shared ones have the same mean everywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Finished, Local, NonNegative, Option, Sets, Step, Strategy
from fedsim.training.targets import real_targets
from strategies.parts import HeadRule, linear_head

CONSENSUS, FEATURES = "consensus", "features"


class FedDbeRule(HeadRule):
    """Trains the set ``shift``, which is added to the features, with the model, once there is a ``consensus``."""

    trained = ("shift",)
    kappa: float

    def start(self, local: Local) -> Local:
        zeros = torch.zeros_like(local.params[f"{self._head}.weight"][0])
        return replace(local, sets={"shift": {"value": zeros}, **local.sets})

    def loss(self, step: Step) -> Tensor:
        logits, features = step.logits_and_features(step.params, self._head)
        if CONSENSUS not in step.sets:
            return step.loss_of(logits)
        shifted = linear(step.sets["shift"]["value"], step.params[f"{self._head}.weight"])
        shifted = shifted.view(-1, *[1] * (logits.dim() - 2))  # of sequences, classes are the second dimension
        apart = _mean(features, step.real) - step.sets[CONSENSUS]["mean"]
        return step.loss_of(logits + shifted) + self.kappa * 0.5 * apart.square().mean()

    def finish(self, local: Local, started: Local) -> Finished:
        kept = {"shift": local.sets["shift"]}
        if CONSENSUS in started.sets:
            return Finished(local.params, kept=kept)
        with torch.no_grad():
            each = [local.features(local.params, local.inputs[chosen], self._head) for chosen in local.batches()]
        mean = _mean(torch.cat(each).double(), real_targets(local.targets))
        return Finished(local.params, kept=kept, sent={FEATURES: {"mean": mean}})

    def personalised(self, local: Local) -> Params:
        # A shift of the head's inputs is a shift of its bias.
        weight, bias = (local.params[f"{self._head}.{kind}"] for kind in ("weight", "bias"))
        return local.params | {f"{self._head}.bias": bias + weight @ local.sets["shift"]["value"]}


class FedDbe(Strategy):
    """Average all layers of clients that learn a shift of their features, towards one mean of all: FedDBE.

    References
    ----------
    Zhang et al. 2023, Eliminating domain bias for federated learning in representation space, arXiv 2311.14975.

    Notes
    -----
    The first round is FedAvg's; in it the clients send the mean of their features after training, whose mean by
    examples is fixed from then on. Afterwards a client's logits are head(features + shift), and the squared distance of
    the mini-batch's mean features from the fixed mean is added to its loss, half its mean over the features. This is
    the paper's momentum mu = 1; PFLlib's defaults, kappa 0 and mu 0.1, switch the regulariser off. PFLlib trains one
    epoch apart from the rounds for the fixed mean. What is evaluated has the shift in the bias of its head.
    """

    client_rule = FedDbeRule
    head: str = Option("head", "Linear layer whose inputs are the features.")
    kappa: NonNegative = Option(1.0, "Weight of the distance between means; the paper's grid goes up to 50.")

    def prepare(self) -> None:
        self._head = linear_head(self.model, self.layers, "head", self.head, with_bias=True)

    def sets_for(self, server_round: int, client: int) -> Sets:
        return {CONSENSUS: {"mean": self.memory["mean"]}} if self.memory else {}

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        weight = self.global_model[f"{self._head}.weight"]
        if server_round == 1:
            return {FEATURES: (weight.shape[1] * torch.float64.itemsize, 0)}
        return {CONSENSUS: (0, weight.shape[1] * weight.itemsize)}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        if not self.memory:
            mean = self.average(updates, of=FEATURES)["mean"]
            self.memory["mean"] = mean.to(self.global_model[self.parameters[0]].dtype)
        return self.average(updates)


def _mean(features: Tensor, real: Tensor | None) -> Tensor:
    """Return the mean of features, [n, ..., size], over the targets that count, or the examples that have one."""
    if real is None:
        return features.flatten(0, -2).mean(0)
    if real.shape != features.shape[:-1]:
        real = real.reshape(len(real), -1).any(1).view(-1, *[1] * (features.dim() - 2)).expand(features.shape[:-1])
    counted = real.reshape(-1, 1).to(features.dtype)
    return (features.flatten(0, -2) * counted).sum(0) / counted.sum().clamp(min=1)
