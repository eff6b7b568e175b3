"""A data set in memory, and the normalisation of its inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fedsim.training.targets import IGNORED, labels_of, real_targets

STATISTICS_CHUNK = 4096


@dataclass(frozen=True)
class Examples:
    """Inputs and their targets.

    Parameters
    ----------
    inputs
        Shape [n, ...]: images as uint8 or float [n, channels, height, width], vectors as float [n, features],
        sequences of tokens as int64 [n, length].
    targets
        int64 class indices, shape [n], or [n, length] with one for each position of a sequence: -100 where a position
        has none, such as padding.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, indices: Tensor) -> Self:
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices])

    @property
    def labels(self) -> Tensor:
        """The class of each example, shape [n]; for a sequence, its last target that counts."""
        if self.targets.ndim == 1:
            return self.targets
        if (real := real_targets(self.targets)) is None:
            return self.targets[:, -1]
        places = torch.arange(self.targets.shape[1], device=self.targets.device)
        return self.targets.gather(1, (real * places).argmax(1, keepdim=True))[:, 0]

    def to(self, device: torch.device) -> Self:
        """Return the same examples on ``device``."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


@dataclass(frozen=True)
class Dataset:
    """The official training and test examples of a data set.

    Parameters
    ----------
    train, test
        Training set, which is split over the clients, and test set, which is the server's.
    classes
        Names in the order of the class indices; for sequences, the vocabulary.
    scale
        Largest possible value of an input: 255 for bytes.
    mean, std
        Mean and standard deviation of each channel or feature, over the training inputs divided by ``scale``;
        empty for tokens.
    ids
        Origin of each training example, by column (``writer``, ``speaker``, ...): indices from 0, shape [n].
    """

    name: str
    train: Examples
    test: Examples
    classes: tuple[str, ...]
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    ids: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: channels, height and width of an image."""
        return tuple(self.train.inputs.shape[1:])

    @cached_property
    def labels(self) -> np.ndarray:
        """The class of each training example, shape [n]."""
        return self.train.labels.cpu().numpy()

    def normalise(self, inputs: Tensor) -> Tensor:
        """Return inputs as float32 with about zero mean and unit variance, on their device; tokens unchanged."""
        if not self.mean:
            return inputs
        shape = (1, -1) + (1,) * (inputs.ndim - 2)
        mean = torch.tensor(self.mean, device=inputs.device).view(shape)
        std = torch.tensor(self.std, device=inputs.device).view(shape)
        normalised = (inputs.float() / self.scale - mean) / std
        return channels_last(normalised) if inputs.ndim == 4 else normalised

    def to(self, device: torch.device) -> Self:
        """Return the data set with its tensors on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def check_dataset(dataset: Dataset) -> None:
    """Check that a data set can be trained on.

    Raises
    ------
    ValueError
        If the numbers of inputs, targets, means, deviations or ids do not match, a part has no example, or a target is
        not the index of a class.
    """
    classes = len(dataset.classes)
    for part, examples in (("training", dataset.train), ("test", dataset.test)):
        where = f"{dataset.name!r}: its {part} set"
        inputs, targets = examples.inputs, examples.targets
        if not 0 < len(targets) == len(inputs):
            raise ValueError(
                f"{where} has {len(inputs)} inputs and {len(targets)} targets; the numbers must be equal and positive"
            )
        if inputs.shape[1:] != dataset.train.inputs.shape[1:]:
            raise ValueError(
                f"{where} has inputs of shape {tuple(inputs.shape[1:])}, not {dataset.shape} as in training"
            )
        if targets.dtype != torch.int64 or targets.ndim not in (1, 2):
            raise ValueError(
                f"{where} has targets of {targets.dtype}, shape {tuple(targets.shape)}; give int64 classes"
            )
        if (real := real_targets(targets)) is not None and not (kept := real.view(len(targets), -1).any(1)).all():
            bare = int(kept.logical_not().nonzero()[0])
            raise ValueError(f"{where} has no target at example {bare}, where all are {IGNORED}; remove the example")
        low, high = int((counted := labels_of(targets)).min()), int(counted.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"{where} has the label {low if low < 0 else high}; labels must be from 0 to {classes - 1}"
            )
        if targets.shape[1:] != dataset.train.targets.shape[1:]:
            raise ValueError(
                f"{where} has targets of shape {tuple(targets.shape[1:])} per example, not "
                f"{tuple(dataset.train.targets.shape[1:])} as in training"
            )
        if inputs.numel() == 0:
            raise ValueError(f"{where} has inputs of shape {dataset.shape}; each input must have at least one number")
        if inputs.dtype == torch.int64 and not 0 <= int(inputs.min()) <= int(inputs.max()) < classes:
            found = f"tokens from {int(inputs.min())} to {int(inputs.max())}"
            raise ValueError(f"{where} has {found}; they must be from 0 to {classes - 1}")
        if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
            raise ValueError(f"{where} has inputs that are not finite; remove them")
    channels = dataset.shape[0] if dataset.shape else 0
    if not len(dataset.mean) == len(dataset.std) or len(dataset.mean) not in (0, 1, channels):
        raise ValueError(
            f"{dataset.name!r} has {len(dataset.mean)} means and {len(dataset.std)} standard deviations for "
            f"{channels} channels; give one of each per channel"
        )
    for column, ids in dataset.ids.items():
        if ids.shape != (len(dataset.train),):
            raise ValueError(
                f"{dataset.name!r} has {len(ids)} ids {column!r} for {len(dataset.train)} training examples"
            )
        if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0:
            raise ValueError(f"{dataset.name!r} has ids {column!r} of {ids.dtype}; they must be non-negative integers")


def image_dataset(
    name: str, train: Examples, test: Examples, classes: tuple[str, ...], ids: Mapping[str, np.ndarray] | None = None
) -> Dataset:
    """Return a data set of uint8 images, normalised by the statistics of its training images."""
    mean, std = channel_statistics(train.inputs, 255.0)
    return Dataset(name, train, test, classes, 255.0, mean, std, ids or {})


def numbered(values: ArrayLike) -> np.ndarray:
    """Return the rank of each value among the distinct ones, int64, shape [n]: ids for `Dataset`."""
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)


def channel_statistics(inputs: Tensor, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of ``inputs / scale``; a constant channel has deviation 1.

    Parameters
    ----------
    inputs
        Shape [n, channels, ...].
    """
    channels = inputs.shape[1]
    sums = torch.zeros(2, channels, dtype=torch.float64)
    for chunk in inputs.split(STATISTICS_CHUNK):
        # NumPy's sums do not depend on the number of threads, as torch's do.
        values = chunk.transpose(0, 1).reshape(channels, -1).double().numpy()
        sums += torch.from_numpy(np.stack([values.sum(1), np.square(values).sum(1)]))
    count = inputs.numel() / channels
    mean, square = sums[0] / (count * scale), sums[1] / (count * scale**2)
    std = (square - mean.square()).clamp(min=0).sqrt()
    # Rounding can leave a constant channel a tiny variance, which must not be divided by.
    std = torch.where(std > 1e-6 * (1 + mean.abs()), std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def channels_last(images: Tensor) -> Tensor:
    """Return images, shape [n, channels, height, width], with the channels next to each other in memory.

    Convolutions and poolings are faster on them. torch's own conversion leaves images with one channel as they are,
    and its convolutions are then slow.
    """
    _, channels, height, width = images.shape
    strides = (channels * height * width, 1, width * channels, channels)
    return torch.empty_strided(images.shape, strides, dtype=images.dtype, device=images.device).copy_(images)


def stratified(labels: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return the sorted positions of ``n`` examples in which each class keeps its share, to within one.

    Parameters
    ----------
    labels
        Class indices, shape [examples], at least ``n``.
    """
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (n / len(labels))
    quota = np.floor(exact).astype(int)
    # The classes with the largest remainders get one more.
    quota[np.argsort(quota - exact, kind="stable")[: n - quota.sum()]] += 1
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(chosen))
