"""The shared body is aligned with what the client knew, and averaged by how much the clients have learnt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from fedsim.models.averaging import weighted_mean
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, Strategy
from strategies.parts import two_parts

PROTOTYPES, FISHER_TRACE = "prototypes", "fisher_trace"


class FedAs(Strategy):
    """Align the new body with each client's old features, and weight clients by the trace of their Fisher information.

    Parameters
    ----------
    head
        The layers that stay with the client; all others are averaged, and their features are the first one's input.
    align_epochs, align_lr
        Of the alignment, by plain SGD.

    Raises
    ------
    ValueError
        If ``head`` or the layers beside it hold no parameter, or ``align_epochs`` or ``align_lr`` is out of range.

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

    def __init__(
        self, model: nn.Module, head: str = "head", align_epochs: int = 1, align_lr: float = 0.01, **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        kept, self._body = two_parts(self.layers, "head", head)
        if align_epochs < 0:
            raise ValueError(f"align_epochs = {align_epochs} must be at least 0; 0 aligns nothing")
        if align_lr <= 0:
            raise ValueError(f"align_lr = {align_lr} must be greater than 0")
        body = self.layers.keys(self._body, buffers=False)
        self._rule = Alignment(body, kept.layers[0], align_epochs, align_lr)

    def shared(self, server_round: int) -> LayerGroup:
        """Share all but the head."""
        return self._body

    def client_rule(self) -> ClientRule:
        """Return the rule that aligns the body and measures what the client has learnt."""
        return self._rule

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Average the bodies, weighted by the clients' traces."""
        # A client that fits its examples perfectly has no gradient, and a weight must be positive.
        smallest = torch.finfo(torch.float64).tiny
        weights = [max(update.metrics[FISHER_TRACE], smallest) for update in updates]
        return weighted_mean([update.shared for update in updates], weights, self.precision)


@dataclass(frozen=True)
class Alignment(ClientRule):
    """Moves a new body's features towards the prototypes of the client's previous one.

    Parameters
    ----------
    body
        Keys of the body's parameters.
    head
        The layer whose input are the features.
    """

    body: tuple[str, ...]
    head: str
    epochs: int
    lr: float

    def start(self, local: Local) -> Local:
        """Align the body with the prototypes, if there are any."""
        params = dict(local.params)
        if PROTOTYPES in local.sets:
            prototypes = local.sets[PROTOTYPES]["mean"]
            for _ in range(self.epochs):
                order = torch.from_numpy(local.rng.permutation(len(local.targets))).to(local.targets.device)
                for inputs, targets in _batches(local, order):
                    self._step_(local, params, inputs, targets, prototypes)
        return replace(local, params=params, sets={})

    def finish(self, local: Local, started: Local) -> Finished:
        """Keep the prototypes of the trained body and tell the trace of the Fisher information."""
        order = torch.arange(len(local.targets), device=local.targets.device)
        trace, features = 0.0, []
        for inputs, targets in _batches(local, order):
            trace += self._squared_gradient(local, inputs, targets)
            with torch.no_grad():
                features.append(_by_target(local.features(local.params, inputs, self.head), targets))
        of_class = one_hot(local.targets.flatten()).double()
        mean = of_class.T @ torch.cat(features).double() / of_class.sum(0).clamp(min=1)[:, None]
        kept = {PROTOTYPES: {"mean": mean.to(features[0].dtype)}}
        return Finished(local.params, kept=kept, metrics={FISHER_TRACE: trace})

    def _step_(self, local: Local, params: Params, inputs: Tensor, targets: Tensor, prototypes: Tensor) -> None:
        def distance(body: Params) -> Tensor:
            features = _by_target(local.features(params | body, inputs, self.head), targets)
            labels = targets.flatten()
            of_same_class = labels.bincount()[labels]
            return ((features - prototypes[labels]).square().mean(1) / of_same_class).sum()

        body = {key: params[key] for key in self.body}
        gradients, _ = local.gradient(distance, body, len(inputs))
        params |= {key: body[key] - self.lr * value for key, value in gradients.items()}

    def _squared_gradient(self, local: Local, inputs: Tensor, targets: Tensor) -> float:
        def loss(parameters: Params) -> Tensor:
            return cross_entropy(local.logits(local.params | parameters, inputs), targets)

        trainable = {key: local.params[key] for key, _ in local.network.model.named_parameters() if key in local.params}
        gradients, _ = local.gradient(loss, trainable, len(inputs))
        return sum(float(value.double().square().sum()) for value in gradients.values())


def _batches(local: Local, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for chosen in order.split(local.settings.batch_size):
        yield local.inputs[chosen], local.targets[chosen]


def _by_target(features: Tensor, targets: Tensor) -> Tensor:
    """Return one row of features for each target, also where an example has a target at each position."""
    return features.reshape(targets.numel(), -1)
