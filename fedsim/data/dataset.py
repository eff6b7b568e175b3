"""A data set in memory, and the normalisation of its inputs."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Inputs and targets side by side.

    Parameters
    ----------
    inputs
        Shape [n, channels, height, width], uint8.
    targets
        Shape [n], int64: class indices.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, indices: Tensor) -> Self:
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices])

    def to(self, device: torch.device) -> Self:
        """Return the same examples on ``device``."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


@dataclass(frozen=True)
class Dataset:
    """The official training and test examples of a data set.

    Parameters
    ----------
    train, test
        The test set is the server's; the training set is what the clients share.
    classes
        Names, in the order of the class indices.
    scale
        The largest value of an input: 255 for bytes.
    mean, std
        Per channel, of the training inputs divided by ``scale``.
    """

    name: str
    train: Examples
    test: Examples
    classes: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an input."""
        channels, height, width = self.train.inputs.shape[1:]
        return channels, height, width

    @cached_property
    def labels(self) -> np.ndarray:
        """Targets of the training set as a NumPy array, shape [n]."""
        return self.train.targets.cpu().numpy()

    def normalise(self, inputs: Tensor) -> Tensor:
        """Return uint8 inputs as float32 with about zero mean and unit variance, on their own device."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=inputs.device).view(shape)
        std = torch.tensor(self.std, device=inputs.device).view(shape)
        return channels_last((inputs.float() / self.scale - mean) / std)

    def to(self, device: torch.device) -> Self:
        """Return the data set with its tensors on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def channels_last(images: Tensor) -> Tensor:
    """Return images, shape [n, channels, height, width], with the channels next to each other in memory.

    Convolutions and poolings are faster on them. torch's own conversion leaves images with one channel as they are,
    and its convolutions then take the slow way.
    """
    _, channels, height, width = images.shape
    strides = (channels * height * width, 1, width * channels, channels)
    return torch.empty_strided(images.shape, strides, dtype=images.dtype, device=images.device).copy_(images)


def stratified(targets: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    """Return the sorted positions of ``n`` examples in which each class has its share, to within one.

    Parameters
    ----------
    targets
        Class indices, shape [examples], at least ``n``.
    """
    labels = targets.cpu().numpy()
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (n / len(labels))
    quota = np.floor(exact).astype(int)
    # The classes with the largest remainders get one more each.
    quota[np.argsort(quota - exact, kind="stable")[: n - quota.sum()]] += 1
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, quota, strict=True)]
    return torch.from_numpy(np.sort(np.concatenate(chosen))).to(targets.device)
