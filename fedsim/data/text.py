"""Text as sequences of characters or words."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

PADDING, UNKNOWN = "<padding>", "<unknown>"
WORD = re.compile(r"[\w']+|[.,!?;]")


def vocabulary(texts: Sequence[str]) -> tuple[str, ...]:
    """Return all characters that occur in the texts, sorted."""
    return tuple(sorted(set().union(*texts)))


def tokens(text: str, index: Mapping[str, int]) -> np.ndarray:
    """Return the index of each character, shape [len(text)]."""
    return np.fromiter((index[character] for character in text), dtype=np.int64, count=len(text))


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in lower case."""
    return WORD.findall(text.lower())


def word_vocabulary(texts: Sequence[str], size: int) -> tuple[str, ...]:
    """Return padding, the unknown word, and the most frequent words of training texts, the most frequent first.

    Parameters
    ----------
    size
        Largest number of tokens, with these two.

    Raises
    ------
    ValueError
        If ``size`` is less than 3.
    """
    if size < 3:
        raise ValueError(f"a vocabulary of {size} tokens has no word besides padding and the unknown one; take more")
    counts = Counter(word for text in texts for word in words(text))
    # Words that are equally frequent are in alphabetical order, so that the order of the texts does not matter.
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return (PADDING, UNKNOWN, *ranked[: size - 2])


def word_tokens(texts: Sequence[str], names: Sequence[str], length: int) -> Tensor:
    """Return the first words of each text as indices in ``names``, shape [n, length].

    Shorter texts are padded in front, so that the last position of a text is always its last word: there models of
    text decide what class it has.

    Parameters
    ----------
    names
        Tokens as `word_vocabulary` returns them.

    Raises
    ------
    ValueError
        If ``length`` is less than 1.
    """
    if length < 1:
        raise ValueError(f"length = {length} must be at least 1 word")
    index = {word: position for position, word in enumerate(names)}
    padding, unknown = index[PADDING], index[UNKNOWN]
    found = np.full((len(texts), length), padding, dtype=np.int64)
    for row, text in zip(found, texts, strict=True):
        if kept := [index.get(word, unknown) for word in words(text)[:length]]:
            row[-len(kept) :] = kept
    return torch.from_numpy(found)


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
