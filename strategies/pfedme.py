"""Personal models within reach of the global one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.models.averaging import weighted_mean
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, Step, Strategy


class PFedMe(Strategy):
    """Pull the global model to personal ones that solve a proximal problem on each mini-batch: pFedMe.

    Parameters
    ----------
    proximal
        Weight of the distance between a client's personal and its local model, the paper's lambda.
    inner_steps
        Steps of gradient descent on each mini-batch for the personal model, the paper's K.
    personal_lr
        Of these steps.
    decay
        Weight decay of these steps.
    server_lr
        Share of the way from the old global parameters to the mean that the server goes, the paper's beta.

    Raises
    ------
    ValueError
        If ``decay`` is negative or another option not positive.

    References
    ----------
    Dinh et al. 2020, Personalized federated learning with Moreau envelopes, arXiv 2006.08848, algorithm 1.

    Notes
    -----
    The local model w goes from w to w - eta lambda (w - theta) after each mini-batch, eta being ``local.lr``: with
    lambda eta above 1 it overshoots. The personal model theta begins each round as the global one and goes on from one
    mini-batch to the next, and it decays, as in the authors' code. The mean is over clients, as in the paper; their
    code weights by examples. What is evaluated is the theta of the client's last mini-batch, and the global model of a
    client that never trained. Running statistics are those of theta. A client passes K times the examples of FedAvg.
    """

    def __init__(
        self,
        model: nn.Module,
        proximal: float = 15.0,
        inner_steps: int = 5,
        personal_lr: float = 0.01,
        decay: float = 0.001,
        server_lr: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        if inner_steps < 1:
            raise ValueError(f"inner_steps = {inner_steps} must be at least 1")
        for name, value in (("proximal", proximal), ("personal_lr", personal_lr), ("server_lr", server_lr)):
            if value <= 0:
                raise ValueError(f"{name} = {value} must be greater than 0; pFedMe moves nothing without it")
        if decay < 0:
            raise ValueError(f"decay = {decay} must not be negative; 0 decays nothing")
        self._server_lr = server_lr
        self._parameters = self.layers.keys(self.layers.names, buffers=False)
        self._rule = PFedMeRule(self._parameters, proximal, inner_steps, personal_lr, decay)

    def client_rule(self) -> ClientRule:
        """Clients keep their personal model for evaluation."""
        return self._rule

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Go towards the uniform mean."""
        mean = weighted_mean([update.shared for update in updates], [1.0] * len(updates), self.precision)
        return {
            key: torch.lerp(self.global_model[key], value, self._server_lr) if key in self._parameters else value
            for key, value in mean.items()
        }


class PFedMeRule(ClientRule):
    """Lets SGD take the outer step of the model, and the inner steps as one step of the set ``theta``.

    Parameters
    ----------
    parameters
        The entries that are trained.
    proximal, inner_steps, personal_lr, decay
        As in `PFedMe`.
    """

    trained = ("theta",)
    plain_sgd = True

    def __init__(
        self, parameters: tuple[str, ...], proximal: float, inner_steps: int, personal_lr: float, decay: float
    ) -> None:
        self._parameters = parameters
        self._proximal = proximal
        self._inner_steps = inner_steps
        self._personal_lr = personal_lr
        self._decay = decay

    def start(self, local: Local) -> Local:
        """Begin each round with the global model as the personal one."""
        return replace(local, sets={"personal": local.params, **local.sets, "theta": local.params})

    def loss(self, step: Step) -> Tensor:
        """Return the loss of the personal model, whose gradient the first inner step takes."""
        return step.cross_entropy(step.logits(step.sets["theta"]))

    def gradient(self, step: Step, gradients: Params) -> Params:
        """Take the inner steps; return what makes SGD arrive where they do, and the outer gradient."""
        start = {key: step.sets["theta"][key] for key in self._parameters}
        theta = self._inner_step(step, start, {key: gradients[f"theta/{key}"] for key in start})
        for _ in range(self._inner_steps - 1):
            theta = self._inner_step(step, theta, step.gradient(lambda values: self._loss(step, values), theta)[0])
        outer = {key: self._proximal * (step.params[key] - value) for key, value in theta.items()}
        return outer | {f"theta/{key}": (start[key] - value) / step.lr for key, value in theta.items()}

    def _loss(self, step: Step, theta: Params) -> Tensor:
        # Statistics have been counted once for this mini-batch; a gradient may not change what it did not make.
        others = {key: value.clone() for key, value in step.sets["theta"].items() if key not in theta}
        return step.cross_entropy(step.logits(others | theta))

    def _inner_step(self, step: Step, theta: Params, slopes: Params) -> Params:
        pull, decay, lr = self._proximal, self._decay, self._personal_lr
        return {
            key: value - lr * (slopes[key] + pull * (value - step.params[key]) + decay * value)
            for key, value in theta.items()
        }

    def finish(self, local: Local, started: Local) -> Finished:
        """Keep the personal model, and give the other one its running statistics."""
        theta = local.sets["theta"]
        model = {key: value if key in self._parameters else theta[key] for key, value in local.params.items()}
        return Finished(model, kept={"personal": theta})

    def personalised(self, local: Local) -> Params:
        """Return the personal model of the client's last round."""
        return local.sets["personal"]
