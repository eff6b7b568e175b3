"""A mixture of a personal and the global model."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models.params import Params
from fedsim.strategy import ClientRule, Finished, Local, Step, Strategy

# Of the square of the mixture's weight, halved, in its loss: the authors' code has it, the paper does not.
MIX_DECAY = 0.02


class Apfl(Strategy):
    """Mix a personal model into the global one, by a weight that each client learns: APFL.

    Parameters
    ----------
    mix
        Weight of the personal model in the mixture to begin with, the paper's alpha.
    adaptive
        Whether each client changes its weight by a step of SGD at the first mini-batch of a round.

    Raises
    ------
    ValueError
        If ``mix`` is not in [0, 1].

    References
    ----------
    Deng et al. 2020, Adaptive personalized federated learning, arXiv 2003.13461, algorithm 1.

    Notes
    -----
    At each mini-batch the global model descends its loss, and the personal model that of the mixture of parameters,
    both from where they stood before, as in the paper. The authors' FedTorch mixes logits instead, and steps one after
    the other; from it come the moment at which the weight changes, its clipping to [0, 1] and its decay of 0.02.
    Momentum and weight decay of the run act on the weight as on parameters. PFLlib begins with a weight of 1, and
    trains the personal model alone. What is evaluated is the mixture; running statistics are the mixture's own.
    """

    def __init__(self, model: nn.Module, mix: float = 0.5, adaptive: bool = True, **settings: Any) -> None:
        super().__init__(model, **settings)
        if not 0 <= mix <= 1:
            raise ValueError(f"mix = {mix} must be from 0, the global model alone, to 1, the personal one alone")
        self._rule = ApflRule(self.layers.keys(self.layers.names, buffers=False), mix, adaptive)

    def client_rule(self) -> ClientRule:
        """Clients keep their personal model and its weight."""
        return self._rule


class ApflRule(ClientRule):
    """Trains the set ``personal``, a whole model, through its mixture with the model, and its weight in ``mix``.

    Parameters
    ----------
    parameters
        The entries that are mixed.
    mix
        The weight to begin with.
    adaptive
        Whether it is trained.
    """

    def __init__(self, parameters: tuple[str, ...], mix: float, adaptive: bool) -> None:
        self.trained = ("personal", "mix") if adaptive else ("personal",)
        self._parameters = parameters
        self._mix = mix

    def start(self, local: Local) -> Local:
        """Begin with the global model and the weight of the options in the first round."""
        weight = local.params[self._parameters[0]].new_tensor(self._mix)
        return replace(local, sets={"personal": local.params, "mix": {"weight": weight}, **local.sets})

    def loss(self, step: Step) -> Tensor:
        """Return the loss of the model, plus that of the mixture, which the model takes no gradient of."""
        fixed = {key: value.detach() for key, value in step.params.items()}
        weight = step.sets["mix"]["weight"]
        # SGD may carry it out of its range until the round ends; at the bounds a clamp has no slope of its own.
        weight = weight + (weight.clamp(0, 1) - weight).detach()
        mixture = self._mixture(step.sets["personal"], fixed, weight)
        return step.cross_entropy(step.logits(step.params)) + step.cross_entropy(step.logits(mixture))

    def gradient(self, step: Step, gradients: Params) -> Params:
        """Let the weight move at the first mini-batch of a round only, and decay."""
        if "mix/weight" not in gradients:
            return gradients
        slope = gradients["mix/weight"] + MIX_DECAY * step.sets["mix"]["weight"]
        return gradients | {"mix/weight": slope if step.number == 0 else torch.zeros_like(slope)}

    def finish(self, local: Local, started: Local) -> Finished:
        """Keep the personal model and its weight, clipped."""
        mix = {"weight": local.sets["mix"]["weight"].clamp(0, 1)}
        return Finished(local.params, kept={"personal": local.sets["personal"], "mix": mix})

    def personalised(self, local: Local) -> Params:
        """Return the mixture."""
        return self._mixture(local.sets["personal"], local.params, local.sets["mix"]["weight"])

    def _mixture(self, personal: Params, model: Params, weight: Tensor) -> Params:
        mixed = {key: weight * personal[key] + (1 - weight) * model[key] for key in self._parameters}
        return personal | mixed
