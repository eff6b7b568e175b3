"""Text as sequences of characters."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def vocabulary(texts: Sequence[str]) -> tuple[str, ...]:
    """Return all characters that occur in the texts, sorted."""
    return tuple(sorted(set().union(*texts)))


def tokens(text: str, index: Mapping[str, int]) -> np.ndarray:
    """Return the index of each character, shape [len(text)]."""
    return np.fromiter((index[character] for character in text), dtype=np.int64, count=len(text))


def windows(sequence: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """Cut a sequence of tokens into inputs and targets, the tokens that follow; the remainder is dropped.

    Returns
    -------
    inputs, targets
        Both [n, length]; every token but the first is the target of exactly one position.
    """
    n = max(0, (len(sequence) - 1) // length)
    inputs = torch.from_numpy(sequence[: n * length].reshape(n, length))
    targets = torch.from_numpy(sequence[1 : n * length + 1].reshape(n, length))
    return inputs, targets
