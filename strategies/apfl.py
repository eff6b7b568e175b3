"""A mixture of a personal and the global model."""

from dataclasses import replace

import torch
from torch import Tensor

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, Finished, Local, Option, Share, Step, Strategy

# Of the square of the mixture's weight, halved, in its loss: the authors' code has it, the paper does not.
MIX_DECAY = 0.02


class ApflRule(ClientRule):
    """Trains the set ``personal``, a whole model, through its mixture with the model, and its weight in ``mix``."""

    mix: float
    adaptive: bool

    def prepare(self) -> None:
        self.trained = ("personal", "mix") if self.adaptive else ("personal",)

    def start(self, local: Local) -> Local:
        weight = local.params[self.parameters[0]].new_tensor(self.mix)
        return replace(local, sets={"personal": local.params, "mix": {"weight": weight}, **local.sets})

    def loss(self, step: Step) -> Tensor:
        fixed = {key: value.detach() for key, value in step.params.items()}
        weight = step.sets["mix"]["weight"]
        # SGD may carry it out of its range until the round ends; at the bounds a clamp has no slope of its own.
        weight = weight + (weight.clamp(0, 1) - weight).detach()
        mixture = self._mixture(step.sets["personal"], fixed, weight)
        return step.loss_of(step.logits(step.params)) + step.loss_of(step.logits(mixture))

    def gradient(self, step: Step, gradients: Params) -> Params:
        if "mix/weight" not in gradients:
            return gradients
        slope = gradients["mix/weight"] + MIX_DECAY * step.sets["mix"]["weight"]
        return gradients | {"mix/weight": slope if step.number == 0 else torch.zeros_like(slope)}

    def finish(self, local: Local, started: Local) -> Finished:
        mix = {"weight": local.sets["mix"]["weight"].clamp(0, 1)}
        return Finished(local.params, kept={"personal": local.sets["personal"], "mix": mix})

    def personalised(self, local: Local) -> Params:
        return self._mixture(local.sets["personal"], local.params, local.sets["mix"]["weight"])

    def _mixture(self, personal: Params, model: Params, weight: Tensor) -> Params:
        return personal | {key: weight * personal[key] + (1 - weight) * model[key] for key in self.parameters}


class Apfl(Strategy):
    """Mix a personal model into the global one, by a weight that each client learns: APFL.

    References
    ----------
    Deng et al. 2020, Adaptive personalized federated learning, arXiv 2003.13461, algorithm 1.

    Notes
    -----
    At each mini-batch the global model descends its loss, and the personal model that of the mixture of parameters,
    both from where they stood before, as in the paper. The authors' FedTorch mixes logits instead, and steps one after
    the other; from it come the moment at which the weight changes, its clipping to [0, 1] and its decay of 0.02.
    Momentum, moments and weight decay of the run's optimiser act on the weight as on parameters. PFLlib begins with a
    weight of 1, and trains the personal model alone. What is evaluated is the mixture; running statistics are the
    mixture's own.
    """

    client_rule = ApflRule
    mix: Share = Option(0.5, "Initial weight of the personal model in the mixture, the paper's alpha; 0 is FedAvg.")
    adaptive: bool = Option(True, "Whether a client changes its weight at the first mini-batch of a round, by SGD.")
