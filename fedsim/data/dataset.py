"""A data set in memory, and the normalisation of its inputs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fedsim.seeds import rng
from fedsim.training.targets import real_targets

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
Spacing = Literal["random", "even"]
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
        has none, such as padding. Or float32: 0 and 1 for a yes or no, shape [n], or for each of several labels,
        [n, labels]; numbers to predict, [n] or [n, outputs].
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, indices: Tensor | slice) -> Self:
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices])

    @property
    def labels(self) -> Tensor:
        """The class of each example, shape [n]; for a sequence, its last target that counts.

        A yes or no is class 1 or 0; of several labels, and of numbers, there is one class, 0.
        """
        if self.targets.is_floating_point():
            values = self.targets.reshape(len(self.targets), -1)
            is_yes = values.shape[1] == 1 and bool(((values == 0) | (values == 1)).all())
            return values[:, 0].long() if is_yes else values.new_zeros(len(values), dtype=torch.int64)
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
        Names in the order of the class indices, or of several labels; empty where numbers are predicted.
    scale
        Largest possible value of an input: 255 for bytes.
    mean, std
        Mean and standard deviation of each channel or feature, over the training inputs divided by ``scale``;
        empty for tokens.
    ids
        Origin of each training example, by column (``writer``, ``speaker``, ...): indices from 0, shape [n].
    vocabulary
        Names of the tokens in the order of their indices; if inputs are tokens and it is empty, the classes, as where
        the next token is predicted.
    task
        What is learnt: a name in `fedsim.training.tasks.TASKS`, or ``auto`` for what the targets are.
    fitted
        Mean and standard deviation of the training inputs, where they were measured. As long as ``mean`` and ``std``
        are these, a run takes those of the inputs that clients train on instead, as they test and validate on others.
    held_out
        Which training examples clients are only tested on, booleans [n]; empty if ``partition.test`` decides that.
    pad_token
        Token that pads inputs; None if they have no padding or it is not known.
    origins
        Names of the ids by column, in their order, such as those of hospitals; a column without them is only numbered.
    """

    name: str
    train: Examples
    test: Examples
    classes: tuple[str, ...]
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    ids: Mapping[str, np.ndarray] = field(default_factory=dict)
    vocabulary: tuple[str, ...] = ()
    task: str = "auto"
    fitted: Statistics | None = None
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    pad_token: int | None = None
    origins: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def trainable(self) -> np.ndarray:
        """Positions of the training examples that are not held out for the clients' tests."""
        return np.flatnonzero(~self.held_out) if len(self.held_out) else np.arange(len(self.train))

    @property
    def outputs(self) -> int:
        """Number of a model's outputs: one per class, label or number, and one logit for a yes or no."""
        targets = self.train.targets
        if not targets.is_floating_point():
            return len(self.classes)
        return targets.shape[1] if targets.ndim == 2 else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: channels, height and width of an image."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def tokens(self) -> int:
        """Number of different tokens that inputs can hold; 0 if they are not tokens."""
        return len(self.vocabulary or self.classes) if self.train.inputs.dtype == torch.int64 else 0

    @cached_property
    def labels(self) -> np.ndarray:
        """The class of each training example, shape [n]."""
        return self.train.labels.cpu().numpy()

    @property
    def fingerprinted(self) -> np.ndarray:
        """Integers by which a saved split knows these data: the labels, or the bits of targets that have none."""
        targets = self.train.targets
        if not targets.is_floating_point() or self.labels.any():
            return self.labels
        return targets.float().cpu().contiguous().numpy().view(np.int32).astype(np.int64)

    def normalise(self, inputs: Tensor) -> Tensor:
        """Return inputs as float32, on their device, with about zero mean and unit variance; tokens unchanged.

        Without ``mean`` and ``std`` they are only divided by ``scale``.
        """
        if inputs.dtype == torch.int64 or inputs.is_complex():
            return inputs
        # In float32, a time in seconds would lose its digits before its mean is subtracted.
        values = inputs if inputs.dtype == torch.float64 else inputs.float()
        normalised = values / self.scale
        if self.mean:
            shape = (1, -1) + (1,) * (inputs.ndim - 2)
            mean, std = (torch.tensor(each, dtype=values.dtype, device=inputs.device) for each in (self.mean, self.std))
            normalised = (normalised - mean.view(shape)) / std.view(shape)
        normalised = normalised.float()
        return channels_last(normalised) if inputs.ndim == 4 else normalised

    @property
    def is_normalised(self) -> bool:
        """Whether inputs are normalised by means and deviations, or have been already."""
        return bool(self.mean) or self.fitted is not None

    def fitted_to(self, positions: np.ndarray) -> Self:
        """Return the data set normalised by the statistics of some training examples only, unless others are given."""
        if self.fitted != (self.mean, self.std):
            return self
        mean, std = channel_statistics(self.train.inputs, self.scale, positions)
        found = replace(self, mean=mean, std=std)
        if self.train.inputs.dtype != torch.float64:
            return found
        # Once normalised, they need no more than float32, which is all that some devices have.
        parts = (replace(part, inputs=found.normalise(part.inputs)) for part in (self.train, self.test))
        return replace(found, train=next(parts), test=next(parts), mean=(), std=(), scale=1.0)

    def to(self, device: torch.device) -> Self:
        """Return the data set with its tensors on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def image_dataset(
    name: str, train: Examples, test: Examples, classes: tuple[str, ...], ids: Mapping[str, np.ndarray] | None = None
) -> Dataset:
    """Return a data set of uint8 images, normalised by the statistics of its training images."""
    mean, std = channel_statistics(train.inputs, 255.0)
    return Dataset(name, train, test, classes, 255.0, mean, std, ids or {}, fitted=(mean, std))


def plain(dataset: Dataset) -> Dataset:
    """Return a data set that other processes can be sent, whatever sequences and mappings its names and ids are in."""
    classes, vocabulary = tuple(dataset.classes), tuple(dataset.vocabulary)
    origins = {column: tuple(names) for column, names in dataset.origins.items()}
    return replace(dataset, classes=classes, vocabulary=vocabulary, ids=dict(dataset.ids), origins=origins)


def numbered(values: ArrayLike) -> np.ndarray:
    """Return the rank of each value among the distinct ones, int64, shape [n]: ids for `Dataset`.

    Numbers are in the order of their size; texts, and a mix of both, in that of texts.
    """
    known = np.asarray(values)
    if known.dtype == object and not all(isinstance(value, int | float) for value in known.flat):
        known = known.astype(str)
    return np.unique(known, return_inverse=True)[1].reshape(-1).astype(np.int64)


def origin_names(ids: np.ndarray, values: Sequence[object] | np.ndarray) -> tuple[str, ...]:
    """Return the names of ids that `numbered` gives, for `Dataset`: of each the first value, as text."""
    return tuple(str(values[place]) for place in np.unique(ids, return_index=True)[1].tolist())


def channel_statistics(inputs: Tensor, scale: float, positions: np.ndarray | None = None) -> Statistics:
    """Return mean and standard deviation of each channel of ``inputs / scale``; a constant channel has deviation 1.

    Parameters
    ----------
    inputs
        Shape [n, channels, ...].
    positions
        The examples that count: all by default.
    """
    sums = _sums(inputs, positions, 0.0)
    count = (len(inputs) if positions is None else len(positions)) * (inputs[0].numel() / inputs.shape[1])
    mean = sums[0] / count
    if inputs.dtype != torch.uint8:  # of which sums are exact; the square of a large mean leaves no digits to others
        sums = _sums(inputs, positions, mean)
    shift = (sums[0] / count) ** 2
    std = np.sqrt(np.maximum(sums[1] / count - shift, 0)) / scale
    mean = mean / scale
    # Rounding can leave a constant channel a tiny variance, which must not be divided by; small units are no rounding.
    rounding = np.abs(mean) * (1e-12 if inputs.dtype == torch.float64 else 1e-6)
    std = np.where(std > np.maximum(rounding, np.finfo(np.float32).tiny), std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def _sums(inputs: Tensor, positions: np.ndarray | None, shift: ArrayLike) -> np.ndarray:
    """Return the sums of the values and of their squares, minus a shift, by channel."""
    channels = inputs.shape[1]
    sums = np.zeros((2, channels))
    if positions is None:
        chunks: Iterable[Tensor] = inputs.split(STATISTICS_CHUNK)
    else:
        chunks = (inputs[each] for each in torch.from_numpy(positions).to(inputs.device).split(STATISTICS_CHUNK))
    if inputs.dtype == torch.uint8:
        return _sums_of_bytes(chunks, channels)
    for chunk in chunks:
        # NumPy's sums do not depend on the number of threads, as torch's do.
        values = chunk.transpose(0, 1).reshape(channels, -1).double().cpu().numpy() - np.reshape(shift, (-1, 1))
        sums += [values.sum(1), np.square(values).sum(1)]
    return sums


def _sums_of_bytes(chunks: Iterable[Tensor], channels: int) -> np.ndarray:
    """Return the same sums, which are exact, by how often each of the 256 values occurs: in a tenth of the time."""
    counts = np.zeros((channels, 256))
    for chunk in chunks:
        for channel, values in enumerate(chunk.transpose(0, 1).reshape(channels, -1)):
            counts[channel] += torch.bincount(values, minlength=256).cpu().numpy()
    values = np.arange(256.0)
    return np.stack([counts @ values, counts @ np.square(values)])


def channels_last(images: Tensor) -> Tensor:
    """Return images, shape [n, channels, height, width], with the channels next to each other in memory.

    Convolutions and poolings are faster on them. torch's own conversion leaves images with one channel as they are,
    and its convolutions are then slow.
    """
    _, channels, height, width = images.shape
    strides = (channels * height * width, 1, width * channels, channels)
    return torch.empty_strided(images.shape, strides, dtype=images.dtype, device=images.device).copy_(images)


def in_usual_order(images: Tensor) -> Tensor:
    """Return images, shape [n, channels, height, width], stored as torch makes them, one channel after the other.

    `Tensor.contiguous` leaves images with one channel as they are, and convolutions of them have their channels last.
    """
    return images.clone(memory_format=torch.contiguous_format)


def stratified(labels: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return the sorted positions of ``n`` examples in which each class keeps its share, to within one.

    Parameters
    ----------
    labels
        Class indices, shape [examples], at least ``n``.
    """
    if n == len(labels):
        return np.arange(n)
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (n / len(labels))
    quota = np.floor(exact).astype(int)
    # The classes with the largest remainders get one more.
    quota[np.argsort(quota - exact, kind="stable")[: n - quota.sum()]] += 1
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, quota, strict=True)]
    is_chosen = np.zeros(len(labels), dtype=bool)
    is_chosen[np.concatenate(chosen)] = True
    return np.flatnonzero(is_chosen)


def set_aside(
    n: int, share: float, spacing: Spacing = "random", draws: np.random.Generator | None = None
) -> np.ndarray:
    """Return which of ``n`` examples are set aside for tests, so that every stretch of them loses about that share.

    Parameters
    ----------
    spacing
        Where in each stretch they lie: at random places, or, with ``even``, always at the same, so that of data in
        which something recurs with that period only one kind may be set aside.
    draws
        Stream of random numbers (default: always the same).

    Returns
    -------
    marks
        Booleans, shape [n].
    """
    before = np.floor(np.arange(n + 1) * share + 1e-9).astype(np.int64)  # how many are among the first ones
    if spacing == "even":
        return np.diff(before) > 0
    length = max(Fraction(share).limit_denominator(20).denominator, round(1 / min(share, 1 - share)))
    last = max(n // length - 1, 0)  # which takes the remainder too
    stretch = np.minimum(np.arange(n) // length, last)
    order = np.lexsort(((draws or rng(0, "test share")).random(n), stretch))
    counts = before[np.where(stretch == last, n, (stretch + 1) * length)] - before[stretch * length]
    marks = np.zeros(n, dtype=bool)
    marks[order] = np.arange(n) - stretch * length < counts
    return marks
