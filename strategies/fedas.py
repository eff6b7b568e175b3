"""The shared body is aligned with what the client knew, and averaged by how much the clients have learnt."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, CountOrZero, Finished, Local, Option, Positive, Strategy
from fedsim.training.class_means import class_means, rows_of_targets
from fedsim.training.targets import labels_of
from strategies.parts import two_parts

PROTOTYPES, FISHER_TRACE = "prototypes", "fisher_trace"


class Alignment(ClientRule):
    """Moves a new body's features towards the mean features by class of the client's previous one."""

    head: str
    align_epochs: int
    align_lr: float
    cross_entropy_only = True

    def prepare(self) -> None:
        head, body = two_parts(self.layers, "head", self.head)
        self._head, self._body = head.layers[0], self.layers.keys(body, buffers=False)

    def start(self, local: Local) -> Local:
        params = dict(local.params)
        if PROTOTYPES in local.sets:
            prototypes = local.sets[PROTOTYPES]["mean"]
            for _ in range(self.align_epochs):
                for chosen in local.batches(local.rng.permutation(len(local.targets))):
                    self._step_(local, params, local.inputs[chosen], local.targets[chosen], prototypes)
        return replace(local, params=params, sets={})

    def finish(self, local: Local, started: Local) -> Finished:
        trace = sum(self._squared_gradient(local, local.inputs[x], local.targets[x]) for x in local.batches())
        means, _ = class_means(local, local.params, self._head, classes=-1)
        return Finished(local.params, kept={PROTOTYPES: {"mean": means["mean"]}}, metrics={FISHER_TRACE: trace})

    def _step_(self, local: Local, params: Params, inputs: Tensor, targets: Tensor, prototypes: Tensor) -> None:
        def distance(body: Params) -> Tensor:
            features = rows_of_targets(local.features(params | body, inputs, self._head), targets)
            labels = labels_of(targets)
            of_same_class = labels.bincount()[labels]
            return ((features - prototypes[labels]).square().mean(1) / of_same_class).sum()

        body = {key: params[key] for key in self._body}
        gradients, _ = local.gradient(distance, body, len(inputs))
        params |= {key: body[key] - self.align_lr * value for key, value in gradients.items()}

    def _squared_gradient(self, local: Local, inputs: Tensor, targets: Tensor) -> float:
        def loss(parameters: Params) -> Tensor:
            return cross_entropy(local.logits(local.params | parameters, inputs), targets)

        gradients, _ = local.gradient(loss, {key: local.params[key] for key in self.parameters}, len(inputs))
        return sum(float(value.double().square().sum()) for value in gradients.values())


class FedAs(Strategy):
    """Align the new body with each client's old features, and weight clients by the trace of their Fisher information.

    References
    ----------
    Yang, Huang and Ye 2024, FedAS: bridging inconsistency in personalized federated learning, CVPR (not on arXiv).

    Notes
    -----
    Before it trains, and before its personalised model is evaluated, a client moves the body that it takes towards the
    mean features by class of its previous local body, which it has computed at the end of its last training. As in the
    authors' code, which PFLlib has taken over, the loss of a mini-batch is the sum over its classes of the mean squared
    distance of each example's features from the class's prototype; FL-bench takes the distance of the mini-batch's
    mean features. The trace is the sum of squared gradients of the mean log-likelihood over mini-batches, of all
    parameters, after training. Differences: a client aligns nothing in its first round, in which it has no previous
    body; alignment works in evaluation mode; mini-batches are those of ``[local]``; and the authors evaluate a client's
    model as it left its training, not with the new body.
    """

    client_rule = Alignment
    head: str = Option("head", "Personal layers; all others are averaged, and their features are the head's input.")
    align_epochs: CountOrZero = Option(1, "Epochs of the alignment; 0 aligns nothing.")
    align_lr: Positive = Option(0.01, "Step size of the alignment, by plain SGD.")

    def prepare(self) -> None:
        _, self.group = two_parts(self.layers, "head", self.head)

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        # A client that fits its examples perfectly has no gradient, and a weight must be positive.
        smallest = torch.finfo(torch.float64).tiny
        return self.average(updates, [max(update.metrics[FISHER_TRACE], smallest) for update in updates])
