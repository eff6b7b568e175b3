"""Features are aligned by class, and each client gets its own combination of all heads."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import (
    ClientUpdate,
    Count,
    Finished,
    Local,
    LocalPlan,
    NonNegative,
    Option,
    Phase,
    Positive,
    Sets,
    Step,
    Strategy,
)
from fedsim.training.class_means import CLASS_MEANS, average_means, class_means, distance_to_means, means_bytes
from strategies.parts import HeadRule, linear_head, two_parts

STATISTICS, BODY = "statistics", "body"
SMALLEST = 1e-3  # weight of a head up to which it is left out, as in the authors' code


class FedPacRule(HeadRule):
    """Pulls features towards the set ``class_means`` while the body trains, and measures what weights of heads need."""

    cross_entropy_only = True
    pull: float
    combine: bool

    def start(self, local: Local) -> Local:
        if CLASS_MEANS not in local.sets:
            return local
        means = local.sets[CLASS_MEANS]
        known = means["count"] > 0
        if not bool(known[local.labels].all()):  # in place of the missing means, the client's own from before training
            own = self._measured(local, local.params)[0]
            mean = torch.where(known[:, None], means["mean"], own["mean"])
            means = {"mean": mean, "count": torch.where(known, means["count"], own["count"])}
        return replace(local, sets={**local.sets, CLASS_MEANS: means})

    def loss(self, step: Step) -> Tensor:
        if CLASS_MEANS not in step.sets or step.phase.label != BODY:
            return step.cross_entropy(step.logits(step.params))
        logits, features = step.logits_and_features(step.params, self._head)
        return step.cross_entropy(logits) + self.pull * distance_to_means(step, features, step.sets[CLASS_MEANS])

    def finish(self, local: Local, started: Local) -> Finished:
        sent = {CLASS_MEANS: self._measured(local, local.params)[0]}
        if self.combine:
            before, features = self._measured(local, started.params)
            scaled = before["mean"] * (before["count"] / len(features))[:, None]
            variance = (features.double().square().sum(1).mean() - scaled.double().square().sum()) / len(features)
            sent[STATISTICS] = {"variance": variance, "scaled_means": scaled}
        return Finished(local.params, sent=sent)

    def _measured(self, local: Local, params: Params) -> tuple[Params, Tensor]:
        return class_means(local, params, self._head, len(params[f"{self._head}.weight"]))


class FedPac(Strategy):
    """Align the clients' features by class, and give each client the combination of heads that suits its data: FedPAC.

    References
    ----------
    Xu, Tong and Huang 2023, Personalized federated learning with feature alignment and classifier collaboration,
    arXiv 2306.11867.

    Notes
    -----
    A client trains the head, then the body, whose loss has ``pull`` times the mean squared distance of the features
    from their class's mean, from the second round on. Weights a of heads minimise a' (diag V + D) a on the simplex, for
    D_jk = sum_c <h_i,c - h_j,c, h_i,c - h_k,c>; h are mean features by class times the class's share, V the variance of
    the client's h, both of the body as it came. It is solved as non-negative least squares in float64, where the
    authors' code sets eigenvalues below 0.01 to 0 once float32 makes one negative. A client without a combination of
    its own, as a new one, gets the mean head. Statistics are measured in evaluation mode.
    """

    client_rule = FedPacRule
    head: str = Option("head", "Linear layer that is combined for each client; its inputs are the features.")
    pull: NonNegative = Option(1.0, "Weight of the distance to the class means, the paper's lambda; 0 aligns nothing.")
    combine: bool = Option(True, "Whether heads are combined; if not, they are personal.")
    head_epochs: Count = Option(1, "Epochs of the head alone, before local.epochs of the body alone.")
    head_lr: Positive = Option(0.1, "Step size of the head, that of the authors' code with any local.lr.")

    def prepare(self) -> None:
        self._combined, self._body = two_parts(self.layers, "head", self.head)
        self._weight = f"{linear_head(self.model, self.layers, 'head', self.head)}.weight"

    def shared(self, server_round: int) -> LayerGroup:
        return self.group if self.combine else self._body

    def local_plan(self, server_round: int) -> LocalPlan:
        head = Phase(self._combined.name, epochs=self.head_epochs, lr=self.head_lr)
        return LocalPlan((head, Phase(self._body.name, label=BODY)))

    def for_client(self, server_round: int, client: int) -> Params:
        return super().for_client(server_round, client) | self.memory.get("head", {}).get(str(client), {})

    def sets_for(self, server_round: int, client: int) -> Sets:
        return {CLASS_MEANS: self.memory["means"]} if self.memory else {}

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        weight = self.model.get_parameter(self._weight)
        size = means_bytes(weight)
        statistics = {STATISTICS: (weight.nbytes + torch.float64.itemsize, 0)} if self.combine else {}
        return {CLASS_MEANS: (size, size if server_round > 1 else 0)} | statistics

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        self.memory["means"] = average_means([update.sets[CLASS_MEANS] for update in updates], by_examples=True)
        if self.combine:
            keys, combined = self.keys(self._combined), self.memory.setdefault("head", {})
            heads = {str(update.client): {key: update.shared[key] for key in keys} for update in updates}
            statistics = [update.sets[STATISTICS] for update in updates]
            variances = np.array([float(each["variance"]) for each in statistics])
            means = np.stack([each["scaled_means"].double().flatten().cpu().numpy() for each in statistics])
            means -= means.mean(0)  # only differences count, and are more exact that way
            products = means @ means.T
            for place, client in enumerate(heads):
                weights = head_weights(variances, products, place)
                combined[client] = self.mixture(heads, dict(zip(heads, weights.tolist(), strict=True)))
        return self.average(updates)


def head_weights(variances: np.ndarray, products: np.ndarray, place: int) -> np.ndarray:
    """Return the weights of all clients' heads, [clients], for the client at a place.

    Parameters
    ----------
    variances
        Variance of each client's scaled class means, [clients].
    products
        Inner products of these means, [clients, clients].

    Notes
    -----
    The minimum of ||L a||^2 on the simplex is the minimum of ||L x||^2 + (sum x - 1)^2 over x >= 0, divided by its sum.
    """
    apart = products - products[place] - products[:, [place]] + products[place, place]
    quadratic = np.diag(np.maximum(variances, 0)) + apart
    mean = quadratic.trace() / len(quadratic)
    # Without any variance or distance all weights are as good.
    values, vectors = np.linalg.eigh(quadratic / mean if mean > 0 else np.eye(len(quadratic)))
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    try:
        found, _ = nnls(np.vstack([root, np.ones(len(root))]), np.append(np.zeros(len(root)), 1.0))
    except RuntimeError:  # without a solution, the client's own head
        found = np.eye(len(root))[place]
    weights = found / found.sum()
    weights[weights <= min(SMALLEST, weights.max() / 2)] = 0  # of a thousand clients all may be as small
    return weights / weights.sum()
