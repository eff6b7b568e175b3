"""Losses by name, and the loss of a run: of each target, of each example and of a batch.

A loss is a function ``loss(outputs, targets, *, options)`` that returns the loss of each target, or of each example.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.training.targets import IGNORED, mean_cross_entropy, member_cross_entropies, per_example
from fedsim.training.tasks import LOSSES, TASKS, TaskName

OfTargets = Callable[[Tensor, Tensor], Tensor]


def auto(outputs: Tensor, targets: Tensor) -> Tensor:
    """Take the first loss that fits the task: cross-entropy, of one logit if it is binary; mse for regression."""
    raise ValueError("the loss follows from the task; name one")


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of one logit per class, in nats."""
    return functional.cross_entropy(outputs, targets, reduction="none")


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of one logit for a yes or no, or for each of several labels, in nats."""
    return functional.binary_cross_entropy_with_logits(outputs.reshape(targets.shape), targets, reduction="none")


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error."""
    return functional.mse_loss(outputs.reshape(targets.shape), targets, reduction="none")


def huber(outputs: Tensor, targets: Tensor, *, delta: float = 1.0) -> Tensor:
    """Half the squared error up to ``delta``, and from there on a line.

    Parameters
    ----------
    delta
        Absolute error from which on the loss is linear.

    Raises
    ------
    ValueError
        If ``delta`` is not greater than 0.
    """
    if delta <= 0:
        raise ValueError(f"delta = {delta} must be greater than 0")
    return functional.huber_loss(outputs.reshape(targets.shape), targets, reduction="none", delta=delta)


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of a run; called with outputs and targets, it returns that of each example, as a criterion does.

    Parameters
    ----------
    task
        What the model learns, which decides what an error is.
    of_targets
        Loss of each target, or of each example.
    name
        Name in ``[loss]``.
    class_weights
        Weight of each class in training, shape [classes]: the mean over a batch is weighted by those of its targets.
        Evaluation is not weighted, so that the losses of all clients and of all runs are of one kind.
    label_smoothing
        Share of the target that is spread over all classes in training, as in torch's cross-entropy.
    of_batch
        Whether the loss of an example depends on the others of its batch, as the partial likelihood of survival times
        does: models are then measured on all examples as one batch, and clients train one at a time.
    """

    task: TaskName = "classification"
    of_targets: OfTargets = cross_entropy
    name: str = "cross-entropy"
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    of_batch: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is the cross-entropy over classes, without weights."""
        return self.of_targets is cross_entropy and self.class_weights is None

    def weighted(self, weights: Tensor | None) -> Self:
        """Return the loss with these weights of classes."""
        return self if weights is None else replace(self, class_weights=weights)

    def smoothed(self, label_smoothing: float) -> Self:
        """Return the loss with that share of each target spread over all classes, if it is cross-entropy."""
        return replace(self, label_smoothing=label_smoothing) if label_smoothing else self

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, shape [n]."""
        return per_example(self.of_targets(outputs, targets), targets)

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the error of each example, shape [n], float64.

        That is 1 where the most likely class is not the target, else 0; for sequences and several labels, the share of
        such targets; for regression, the squared error.
        """
        if self.task == "regression":
            return per_example((outputs.reshape(targets.shape).double() - targets.double()).square(), targets)
        if self.task in ("binary", "multi-label"):
            return per_example(((outputs.reshape(targets.shape) > 0) != (targets > 0.5)).double(), targets)
        return per_example((outputs.argmax(1) != targets).double(), targets)

    def mean(self, outputs: Tensor, targets: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the mean over all targets of a batch that count; 0 if none does.

        Parameters
        ----------
        outputs, targets
            Of a batch, shape [n, ...].
        real
            Targets that count, with the shape of the targets; None if all do.
        """
        if self.is_plain:
            return mean_cross_entropy(outputs, targets, real, self.label_smoothing)
        losses = self._weighted(outputs, targets)
        if real is None and self.class_weights is None:
            return losses.mean()
        weights = self._weights(targets, real).to(losses.dtype)
        if losses.shape != targets.shape:  # one for each example
            weights = weights.flatten(1).sum(1)
            losses = losses * weights
        if real is not None:
            losses = torch.where(weights > 0, losses, 0)
        total = weights.sum()
        return losses.sum() / torch.where(total > 0, total, 1)

    def weight_of(self, targets: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the sum of the weights over which `mean` is taken, float64."""
        if real is None and self.class_weights is None:
            return torch.tensor(targets.numel(), dtype=torch.float64, device=targets.device)
        return self._weights(targets, real).sum(dtype=torch.float64)

    def of_members(
        self, outputs: Tensor, targets: Tensor, real: Tensor | None = None, class_weights: Tensor | None = None
    ) -> Tensor:
        """Return what `mean` returns for each of several members, shape [members].

        Parameters
        ----------
        outputs, targets, real
            As there, with a first dimension of members.
        class_weights
            Weights of each member, shape [members, classes]; None if there are none.
        """
        if self.is_plain and class_weights is None:
            return member_cross_entropies(outputs, targets, real, self.label_smoothing)

        def mean(given: dict[str, Tensor]) -> Tensor:
            own = self.weighted(given.get("class_weights"))
            return own.mean(given["outputs"], given["targets"], given.get("real"))

        every = {"outputs": outputs, "targets": targets, "real": real, "class_weights": class_weights}
        return torch.vmap(mean)({name: value for name, value in every.items() if value is not None})

    def _weighted(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each target times the weight of its class, or of each example."""
        if self.of_targets is cross_entropy:
            smoothing, weights = self.label_smoothing, self.class_weights
            if weights is not None:  # a padded vocabulary has more outputs, which are no target
                weights = functional.pad(weights, (0, outputs.shape[1] - len(weights)))
            return functional.cross_entropy(outputs, targets, weights, reduction="none", label_smoothing=smoothing)
        losses = self.of_targets(outputs, targets)
        if self.class_weights is None or losses.shape != targets.shape:
            return losses
        return losses * self._weights(targets, None)

    def _weights(self, targets: Tensor, real: Tensor | None) -> Tensor:
        """Return the weight of each target: that of its class, or 1, and 0 if it does not count."""
        if self.class_weights is None:
            assert real is not None
            return real
        labels = targets.long()
        weights = self.class_weights[torch.where(labels == IGNORED, 0, labels)]
        return weights if real is None else torch.where(real, weights, 0)


CROSS_ENTROPY = Loss()


def loss_of(task: str, name: str = "auto", of_targets: OfTargets | None = None) -> Loss:
    """Return the loss of a task by its name, or a custom one.

    Parameters
    ----------
    task
        Name in `fedsim.training.tasks.TASKS`.
    name
        Name in `fedsim.training.tasks.LOSSES`, or of the custom loss.
    of_targets
        The loss with its options, if it has any or is custom.

    Raises
    ------
    ValueError
        If the loss does not fit the task.
    """
    found = TASKS[task]
    chosen = found.losses[0] if name == "auto" else name
    if chosen in LOSSES and chosen not in found.losses:
        raise ValueError(f"{name!r} does not fit the task {task!r}; its losses are: {', '.join(found.losses)}")
    if of_targets is None or name == "auto":
        of_targets = LOSSES[chosen]
    return Loss(found.name, of_targets, chosen)
