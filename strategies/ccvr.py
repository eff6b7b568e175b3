"""After training, the head is calibrated on features that no client has, drawn from what all clients have measured."""

from collections.abc import Mapping, Sequence

import torch

from fedsim import seeds
from fedsim.alignment.repair.head import ClassGaussians, calibrate_head
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import (
    ClientUpdate,
    Count,
    CountOrZero,
    Finished,
    Local,
    LocalPlan,
    Option,
    Positive,
    Strategy,
)
from fedsim.training.class_means import features_of
from strategies.parts import HeadRule, linear_head

GAUSSIANS = "gaussians"


class CcvrRule(HeadRule):
    """Measures, in the round of the calibration, the features of each class by the model that it has received."""

    cross_entropy_only = True
    after: int

    def finish(self, local: Local, started: Local) -> Finished:
        if local.server_round != self.after + 1:
            return Finished(local.params)
        features = features_of(local, local.params, self._head)
        found = ClassGaussians.of(features, local.labels, len(local.params[f"{self._head}.weight"]))
        return Finished(local.params, sent={GAUSSIANS: dict(vars(found))})


class Ccvr(Strategy):
    """Train by FedAvg, then train the head once on features drawn from Gaussians of the classes: CCVR.

    References
    ----------
    Luo et al. 2021, No fear of heterogeneity: classifier calibration for federated learning with non-IID data,
    arXiv 2106.05001, algorithm 1.

    Notes
    -----
    In round ``after`` + 1, which the paper has after the last one, nobody trains: clients send number, mean and
    covariance of the head's inputs for each class, by the global model as it came, and its number of features squared
    is what a covariance costs. The server pools them, which gives exactly those of all participants' examples together,
    draws ``samples`` features of each class with at least two examples, and trains the head on these by plain SGD.
    FedAvg would continue from there. FL-bench pools covariances that are divided by n as if they were by n - 1, takes
    one epoch, and calibrates again in each evaluation.
    """

    client_rule = CcvrRule
    head: str = Option("head", "Linear layer that is calibrated.")
    after: Count = Option(10, "Rounds of FedAvg before the calibration: one less than the run has.")
    samples: Count = Option(200, "Features that are drawn of each class.")
    epochs: CountOrZero = Option(10, "Epochs of the calibration; 0 leaves the head as it is.")
    head_lr: Positive = Option(0.01, "Step size of the calibration.")
    batch_size: Count = Option(32, "Features in a mini-batch of the calibration.")

    def prepare(self) -> None:
        self._name = linear_head(self.model, self.layers, "head", self.head)

    def check_rounds(self, rounds: int) -> None:
        if rounds <= self.after:
            raise ValueError(
                f"calibrates in round {self.after + 1}, and the run has {rounds}; set strategy.after = "
                f"{max(rounds - 1, 1)} or rounds = {self.after + 1}"
            )

    def shared(self, server_round: int) -> LayerGroup:
        return self.layers.group(self.head) if server_round == self.after + 1 else self.layers.group("all")

    def local_plan(self, server_round: int) -> LocalPlan:
        return LocalPlan(()) if server_round == self.after + 1 else LocalPlan()

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        if server_round != self.after + 1:
            return {}
        classes, features = self.global_model[f"{self._name}.weight"].shape
        return {GAUSSIANS: (classes * (1 + features + features**2) * torch.float64.itemsize, 0)}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        average = self.average(updates)
        if server_round != self.after + 1:
            return average
        whole = ClassGaussians.pooled([ClassGaussians(**update.sets[GAUSSIANS]) for update in updates])
        stream = seeds.rng(self.seed, "virtual features", server_round)
        features, labels = whole.draw(self.samples, stream)
        name = self._name
        weight, bias = calibrate_head(
            average[f"{name}.weight"],
            average.get(f"{name}.bias"),
            features,
            labels,
            epochs=self.epochs,
            lr=self.head_lr,
            batch_size=self.batch_size,
            rng=stream,
        )
        return average | {f"{name}.weight": weight} | ({} if bias is None else {f"{name}.bias": bias})
