"""The head of an average, calibrated on features drawn from Gaussians of the classes: CCVR."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, one_hot

FEWEST = 2  # examples of a class, for a covariance


@dataclass(frozen=True)
class ClassGaussians:
    """Number, mean and covariance of the features of each class, float64.

    Parameters
    ----------
    counts, means, covariances
        Shapes [classes], [classes, features] and [classes, features, features]; covariances are unbiased, and 0 for a
        class with fewer than two examples, as the mean of one without any.
    """

    counts: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> "ClassGaussians":
        """Return those of examples.

        Parameters
        ----------
        features, labels
            Shapes [n, features] and [n].
        """
        rows, member = features.double(), one_hot(labels, classes).double()
        counts = member.sum(0)
        means = member.T @ rows / counts.clamp(min=1)[:, None]
        centred = rows - means[labels]
        scatter = torch.stack([centred[labels == c].T @ centred[labels == c] for c in range(classes)])
        return cls(counts, means, scatter / (counts - 1).clamp(min=1)[:, None, None])

    @classmethod
    def pooled(cls, members: Sequence["ClassGaussians"]) -> "ClassGaussians":
        """Return those of the examples of all members together."""
        counts = torch.stack([member.counts for member in members])
        means = torch.stack([member.means for member in members])
        total = counts.sum(0)
        mean = (counts[..., None] * means).sum(0) / total.clamp(min=1)[:, None]
        scatter = torch.zeros_like(members[0].covariances)
        for member in members:
            moved = member.means - mean
            # Within the member, and of its mean from that of all.
            scatter += (member.counts - 1).clamp(min=0)[:, None, None] * member.covariances
            scatter += member.counts[:, None, None] * moved[:, :, None] * moved[:, None, :]
        return cls(total, mean, scatter / (total - 1).clamp(min=1)[:, None, None])

    def draw(self, samples: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return virtual features and their labels, equally many of each class that has at least two examples."""
        known = (self.counts >= FEWEST).nonzero().flatten().tolist()
        features = [
            rng.multivariate_normal(mean.numpy(), covariance.numpy(), samples, check_valid="ignore", method="eigh")
            for mean, covariance in ((self.means[c].cpu(), self.covariances[c].cpu()) for c in known)
        ]
        drawn = np.concatenate(features) if features else np.zeros((0, self.means.shape[1]))
        return torch.from_numpy(drawn), torch.tensor(known, dtype=torch.int64).repeat_interleave(samples)


def calibrate_head(
    weight: Tensor,
    bias: Tensor | None,
    features: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a linear head after training on features by cross-entropy and plain SGD.

    Parameters
    ----------
    features, labels
        Shapes [n, features] and [n].
    """
    features, labels = features.to(weight), labels.to(weight.device)
    trained = [value.detach().clone().requires_grad_() for value in (weight, bias) if value is not None]
    optimizer = torch.optim.SGD(trained, lr=lr)
    for _ in range(epochs * bool(len(labels))):
        for chosen in torch.from_numpy(rng.permutation(len(labels))).to(labels.device).split(batch_size):
            optimizer.zero_grad()
            cross_entropy(linear(features[chosen], *trained), labels[chosen]).backward()
            optimizer.step()
    new, *rest = (value.detach() for value in trained)
    return new, rest[0] if rest else None
