"""Evaluation of one model, example by example."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

EVALUATION_BATCH = 500

Criterion = Callable[[Tensor, Tensor], Tensor]


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy in nats of each example, shape [n]: of a sequence, the mean over its positions.

    Parameters
    ----------
    logits, targets
        Shapes [n, classes] and [n], or [n, classes, length] and [n, length].
    """
    return _per_example(cross_entropy(logits, targets, reduction="none"))


@dataclass(frozen=True)
class Evaluation:
    """Results of a model, example by example.

    Parameters
    ----------
    losses
        Shape [n], float64; in nats for cross-entropy.
    errors
        1 where the most likely class is not the target, else 0; of a sequence, the share of such positions. NaN where
        targets are not class indices. Shape [n], float64.
    """

    losses: Tensor
    errors: Tensor

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.losses)

    @property
    def loss(self) -> float:
        """Mean loss per example."""
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        """Share of the examples whose most likely class is the target."""
        return 1.0 - float(self.errors.mean())


def evaluate(model: nn.Module, inputs: Tensor, targets: Tensor, criterion: Criterion = cross_entropies) -> Evaluation:
    """Evaluate ``model`` in eval mode, and restore its mode.

    Parameters
    ----------
    inputs, targets
        Normalised inputs, shape [n, ...], and targets, shape [n, ...]: class indices unless ``criterion`` takes others.
    criterion
        Maps outputs and targets of a batch to one loss per example.
    """
    was_training = model.training
    model.eval()
    losses, errors = [], []
    with torch.inference_mode():
        for start in range(0, len(targets), EVALUATION_BATCH):
            expected = targets[start : start + EVALUATION_BATCH]
            outputs = model(inputs[start : start + EVALUATION_BATCH])
            loss = criterion(outputs, expected).cpu().double()
            losses.append(loss)
            is_class = not expected.is_floating_point()
            errors.append(_errors(outputs, expected) if is_class else torch.full_like(loss, torch.nan))
    model.train(was_training)
    return Evaluation(torch.cat(losses), torch.cat(errors))


def _errors(outputs: Tensor, targets: Tensor) -> Tensor:
    return _per_example((outputs.argmax(1) != targets).cpu().double())


def _per_example(values: Tensor) -> Tensor:
    """Return the mean over all dimensions but the first."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values
