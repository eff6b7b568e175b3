"""Mean features of each class, as parameter sets: what clients measure, average and are pulled towards."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedsim.models.params import Params
from fedsim.training.context import Local, Step
from fedsim.training.targets import real_targets

CLASS_MEANS = "class_means"


def class_means(local: Local, params: Params, layer: str, classes: int) -> tuple[Params, Tensor]:
    """Return the mean of a client's training features by class, and all features.

    Parameters
    ----------
    layer
        Layer whose inputs are the features.
    classes
        Number of classes, also of those that the client lacks; -1 for one more than its largest label.

    Returns
    -------
    means
        ``mean``, [classes, features], 0 for a class that the client lacks, and ``count``, its examples, [classes].
    features
        One row for each target that counts, [targets, features].
    """
    features = features_of(local, params, layer)
    return means_of(features, local.labels, classes), features


def features_of(local: Local, params: Params, layer: str) -> Tensor:
    """Return the inputs of ``layer`` for a client's training examples, a row for each target that counts.

    It takes a mini-batch at a time, as training does, so that it needs no more memory.
    """
    rows = []
    with torch.no_grad():
        for chosen in local.batches():
            found = local.features(params, local.inputs[chosen], layer)
            rows.append(rows_of_targets(found, local.targets[chosen]))
    return torch.cat(rows)


def means_of(features: Tensor, labels: Tensor, classes: int = -1) -> Params:
    """Return ``mean`` and ``count`` by class of rows of features, as `class_means` does."""
    of_class = one_hot(labels, classes)
    count = of_class.sum(0)
    mean = of_class.double().T @ features.double() / count.clamp(min=1)[:, None]
    return {"mean": mean.to(features.dtype), "count": count}


def means_bytes(weight: Tensor) -> int:
    """Return the bytes of means by class as they travel, for the weight of a head, [classes, features]."""
    return weight.nbytes + len(weight) * torch.int64.itemsize


def average_means(members: Sequence[Params], *, by_examples: bool) -> Params:
    """Return the mean by class over the clients that have it, weighted by its examples or each client the same."""
    counts = [member["count"].double() for member in members]
    weights = counts if by_examples else [(count > 0).double() for count in counts]
    total = sum(weights[1:], weights[0])
    summed = sum(w[:, None] * member["mean"].double() for w, member in zip(weights, members, strict=True))
    mean = (summed / total.clamp(min=1)[:, None]).to(members[0]["mean"].dtype)
    return {"mean": mean, "count": torch.stack([member["count"] for member in members]).sum(0)}


def distance_to_means(step: Step, features: Tensor, means: Params) -> Tensor:
    """Return the mean squared distance of the mini-batch's features from the means of their classes.

    It is a mean over all entries, as of `torch.nn.MSELoss`; features of a class without a mean are at distance 0.
    """
    labels = step.targets.clamp(min=0)
    apart = (features.reshape(*labels.shape, -1) - means["mean"][labels]).square().mean(-1)
    return step.mean(apart * (means["count"] > 0)[labels])


def rows_of_targets(features: Tensor, targets: Tensor) -> Tensor:
    """Return one row of features for each target that counts, also where an example has one at each position."""
    rows = features.reshape(targets.numel(), -1)
    return rows if (real := real_targets(targets)) is None else rows[real.flatten()]
