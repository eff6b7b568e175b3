"""Dropout with masks that are a function of a number, the same on every device, in every thread and in a cohort."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

# Number of dimensions within a channel that is dropped as a whole; None: elements are dropped independently.
SPATIAL: dict[type[nn.Module], int | None] = {
    nn.Dropout: None,
    nn.Dropout1d: 1,
    nn.Dropout2d: 2,
    nn.Dropout3d: 3,
}


class SeededDropout(nn.Dropout):
    """Dropout of elements or whole channels by the numbers of a stream, not by torch's global random state.

    Parameters
    ----------
    spatial
        Dimensions of a channel that is dropped as a whole, as in `torch.nn.Dropout2d`; None drops single elements.

    Attributes
    ----------
    stream
        Number of the stream, a non-negative int64 scalar that is not in the state dict.
    calls
        Number of uses of the module since the stream was set; each has its own mask.
    """

    stream: Tensor

    def __init__(self, p: float, spatial: int | None = None) -> None:
        super().__init__(p)
        self.spatial, self.calls = spatial, 0
        self.register_buffer("stream", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with a share p of it set to 0 and the rest divided by 1 - p, in training mode."""
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return x * 0
        shape = x.shape
        if self.spatial is not None:
            # As in torch: a single example has no batch dimension, but Dropout2d also takes [n, channels, length].
            single = x.ndim == self.spatial + 1 and self.spatial != 2
            leading = 1 if single else 2
            shape = shape[:leading] + (1,) * (x.ndim - leading)
        kept = random_words(self.stream, self.calls, shape) >= round(self.p * 2**32) - 2**31
        self.calls += 1
        return x * (kept.to(x.dtype) * (1 / (1 - self.p)))


def random_words(stream: Tensor, call: int, shape: Sequence[int]) -> Tensor:
    """Return 32-bit numbers as int32, each a function of the stream, the call and the position in the tensor.

    Notes
    -----
    The position is keyed with one half of the stream's number, passed through a 32-bit finaliser, keyed with the other
    half and passed through it again.

    References
    ----------
    Wellons 2018, Prospecting for hash functions, nullprogram.com/blog/2018/07/31 (lowbias32).
    """
    positions = torch.arange(math.prod(shape), dtype=torch.int32, device=stream.device)
    words = _scramble_(positions ^ _low_word(stream ^ (call * 0x9E3779B9)))
    return _scramble_(words.bitwise_xor_(_low_word(stream >> 32))).view(tuple(shape))


def _scramble_(words: Tensor) -> Tensor:
    # Products wrap around; shifting a negative number brings in ones, which the masks remove.
    words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    words.bitwise_xor_((words >> 15).bitwise_and_(0x1FFFF)).mul_(0x846CA68B - 2**32)
    return words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF))


def _low_word(number: Tensor) -> Tensor:
    """Return the lower 32 bits of an int64 as an int32."""
    return (((number + 2**31) & 0xFFFFFFFF) - 2**31).to(torch.int32)


def seeded_dropout_(model: nn.Module) -> None:
    """Replace torch's dropout modules in ``model`` by seeded ones; its state dict and its layers do not change.

    Subclasses of torch's modules, and dropout that a model calls as a function, are not replaced.
    """
    replacements: dict[int, SeededDropout] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if path and type(module) in SPATIAL:
            assert isinstance(module, nn.modules.dropout._DropoutNd)
            if id(module) not in replacements:  # a module that is used in several places remains one
                replacements[id(module)] = SeededDropout(module.p, SPATIAL[type(module)])
                replacements[id(module)].train(module.training)
            model.set_submodule(path, replacements[id(module)])


def seeded_modules(model: nn.Module) -> dict[str, SeededDropout]:
    """Return the seeded modules of ``model`` that drop something, by path."""
    return {
        path: module for path, module in model.named_modules() if isinstance(module, SeededDropout) and module.p > 0
    }


def streams(epochs: np.ndarray, steps: np.ndarray, modules: int) -> np.ndarray:
    """Return a stream's number for each pair of an epoch and a step in it and for each module, [pairs, modules].

    Parameters
    ----------
    epochs, steps
        Random numbers of the epochs, 63 bits each, and positions in them, from 0; shape [pairs].

    References
    ----------
    Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators, OOPSLA (SplitMix64).
    """
    counter = steps[:, None] * modules + np.arange(1, modules + 1)
    words = epochs[:, None].astype(np.uint64) + counter.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((words ^ (words >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


def set_streams_(modules: Iterable[SeededDropout], numbers: Tensor) -> None:
    """Give each module the number of its stream for a step; shape [modules]."""
    for module, number in zip(modules, numbers, strict=True):
        module.stream.copy_(number)
        module.calls = 0
