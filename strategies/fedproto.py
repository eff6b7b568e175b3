"""Only the mean features of each class travel."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Finished, Local, NonNegative, Option, Sets, Step, Strategy
from fedsim.training.class_means import CLASS_MEANS, average_means, class_means, distance_to_means, means_bytes
from strategies.parts import HeadRule, linear_head

NEVER = -1e4  # logit of a class without a mean, which is no prediction


class FedProtoRule(HeadRule):
    """Pulls features towards the set ``class_means``, the clients' average, and sends the client's own."""

    cross_entropy_only = True
    pull: float
    predict: str

    def loss(self, step: Step) -> Tensor:
        if CLASS_MEANS not in step.sets:
            return step.cross_entropy(step.logits(step.params))
        logits, features = step.logits_and_features(step.params, self._head)
        return step.cross_entropy(logits) + self.pull * distance_to_means(step, features, step.sets[CLASS_MEANS])

    def finish(self, local: Local, started: Local) -> Finished:
        classes = len(local.params[f"{self._head}.weight"])
        means, _ = class_means(local, local.params, self._head, classes)
        return Finished(local.params, sent={CLASS_MEANS: means})

    def personalised(self, local: Local) -> Params:
        if self.predict == "head" or CLASS_MEANS not in local.sets:
            return local.params
        # -||z - m||^2 without ||z||^2, which all classes have, is linear in the features z.
        mean, known = local.sets[CLASS_MEANS]["mean"], local.sets[CLASS_MEANS]["count"] > 0
        bias = torch.where(known, -mean.square().sum(1), NEVER)
        return local.params | {f"{self._head}.weight": 2 * mean, f"{self._head}.bias": bias}


class FedProto(Strategy):
    """Average no layer but the mean features of each class, towards which clients pull their own: FedProto.

    References
    ----------
    Tan et al. 2022, FedProto: federated prototype learning across heterogeneous clients, arXiv 2105.00243.

    Notes
    -----
    The loss is the cross-entropy plus ``pull`` times the mean squared distance of the features from their class's mean,
    from the second round on. A class that nobody had in the last round has no mean and no distance. Each client counts
    the same in a class's mean, as in the authors' code; the paper weights by examples. Means are measured after
    training, in evaluation mode; the authors' code averages the features that occur while training, of changing models.
    The paper predicts the nearest mean, as PFLlib measures; the authors' code measures both, FL-bench the head. All
    classes travel, also those that a client lacks. The global model stays the initial one.
    """

    client_rule = FedProtoRule
    head: str = Option("head", "Linear layer whose inputs are the features.")
    pull: NonNegative = Option(1.0, "Weight of the distance to the means, the paper's lambda; 0 is local training.")
    predict: Literal["head", "means"] = Option("head", "What classifies: the client's head, or the nearest class mean.")

    def prepare(self) -> None:
        self._head = linear_head(self.model, self.layers, "head", self.head, with_bias=self.predict == "means")

    def shared(self, server_round: int) -> LayerGroup:
        return self.layers.group("none")

    def sets_for(self, server_round: int, client: int) -> Sets:
        return {CLASS_MEANS: self.memory["means"]} if self.memory else {}

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        size = means_bytes(self.model.get_parameter(f"{self._head}.weight"))
        return {CLASS_MEANS: (size, size if server_round > 1 else 0)}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        self.memory["means"] = average_means([update.sets[CLASS_MEANS] for update in updates], by_examples=False)
        return {}
