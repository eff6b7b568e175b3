"""Targets that count: all but those that mark padding."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

# A target that torch's cross-entropy ignores: padding, or a position without a label.
IGNORED = -100


def real_targets(targets: Tensor) -> Tensor | None:
    """Return which targets count, with the shape of the targets; None if all do."""
    if targets.is_floating_point():
        return None
    real = targets != IGNORED
    return None if bool(real.all()) else real


def labels_of(targets: Tensor) -> Tensor:
    """Return the classes of all targets that count, shape [targets]."""
    real = real_targets(targets)
    return targets.flatten() if real is None else targets[real]


def number_of_targets(targets: Tensor) -> int:
    """Return how many targets count."""
    real = real_targets(targets)
    return targets.numel() if real is None else int(real.sum())


def target_counts(targets: Tensor) -> Tensor | None:
    """Return how many targets of each example count, float64 on the CPU, shape [n]; None if all weigh the same.

    Where no target counts at all, there is a count of 0 for each example, and no mean over them.
    """
    real = real_targets(targets)
    if real is None:
        return None
    counts = real.flatten(1).sum(1) if real.ndim > 1 else real
    return None if bool((counts == counts[:1]).all() and counts[:1].any()) else counts.double().cpu()


def mean_cross_entropy(
    logits: Tensor, targets: Tensor, real: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy in nats over all targets of a batch that count; 0 if none does.

    Parameters
    ----------
    logits, targets
        Logits and class indices, shapes [n, classes] and [n], or [n, classes, length] and [n, length].
    real
        Targets that count, with the shape of the targets; None if all do.
    label_smoothing
        Share of each target that is spread evenly over all classes.
    """
    if real is None:
        return cross_entropy(logits, targets, label_smoothing=label_smoothing)
    losses = cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    return torch.where(real, losses, 0).sum() / real.sum().clamp(min=1)


def member_cross_entropies(
    logits: Tensor, targets: Tensor, real: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return what `mean_cross_entropy` returns for each of several members, shape [members].

    Parameters
    ----------
    logits, targets, real, label_smoothing
        As there, with a first dimension of members.
    """
    logits, flat = logits.flatten(0, 1), targets.flatten(0, 1)
    losses = cross_entropy(logits, flat, reduction="none", label_smoothing=label_smoothing).view(targets.shape)
    if real is None:
        return losses.flatten(1).mean(1)
    return torch.where(real, losses, 0).flatten(1).sum(1) / real.flatten(1).sum(1).clamp(min=1)


def per_example(values: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of the values over each example's targets that count, shape [n]; 0 for a sequence without any.

    Parameters
    ----------
    values
        A number for each target, or for each example.
    targets
        Class indices, shape [n] or [n, length]; of others, such as shares of classes, all count.
    """
    if values.ndim == 1:
        return values
    if targets.shape != values.shape or targets.is_floating_point():
        return values.flatten(1).mean(1)
    real = targets != IGNORED
    return torch.where(real, values, 0).flatten(1).sum(1) / real.flatten(1).sum(1).clamp(min=1)
