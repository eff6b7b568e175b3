"""Small generated data for tests and first steps."""

import math

import numpy as np
import torch

from fedsim.data.dataset import STATISTICS_CHUNK, Dataset, Examples, image_dataset
from fedsim.memory import check_fits
from fedsim.seeds import rng

BLOCK = 1 << 15  # numbers of images that are drawn at a time
IMAGES = 1.25  # bytes of each number of a training image, with a quarter as many test images
COUNTED = 2  # bytes that each number of a chunk takes from which statistics are counted
IDS = 20  # bytes of the targets and domains of an example
PATTERNS = 8  # bytes of each number of a pattern
TEXT = 40  # bytes that each token takes while it is drawn


def toy(
    *,
    examples: int = 1000,
    classes: int = 4,
    shape: tuple[int, int, int] = (1, 8, 8),
    noise: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Generate images: one random pattern per class, under Gaussian noise. For tests.

    Its id column ``domain`` distinguishes four backgrounds of different brightness.

    Parameters
    ----------
    examples
        Size of the training set; the test set is a quarter as large.
    shape
        Channels, height and width.
    noise
        Standard deviation of the noise, where the patterns' values are from 0 to 1.
    seed
        Seed of the patterns and the noise, independent of the run's.

    Raises
    ------
    ValueError
        If there are fewer examples than classes, or a number is out of range.
    """
    if classes < 2 or examples < 4 * classes:
        raise ValueError(
            f"classes = {classes} must be at least 2 and examples = {examples} at least four times as many"
        )
    if len(shape) != 3 or min(shape) < 1 or noise < 0:
        raise ValueError(f"shape = {list(shape)} must be three positive numbers and noise = {noise} at least 0")
    size = math.prod(shape)
    needed = round(examples * (IMAGES * size + IDS)) + COUNTED * min(examples, STATISTICS_CHUNK) * size
    check_fits(needed, f"examples = {examples}")
    check_fits(needed + PATTERNS * classes * size, f"classes = {classes} with examples = {examples}")
    stream = rng(seed, "toy")
    bright = 0.8 * stream.random((classes, *shape))
    block = max(1, BLOCK // size)  # of examples that stay in the cache while they are drawn
    parts, domains = [], []
    for n in (examples, examples // 4):
        targets = stream.permutation(np.arange(n) % classes)
        domain = stream.integers(4, size=n)
        images = np.empty((n, *shape), dtype=np.uint8)
        for start in range(0, n, block):
            part = slice(start, start + block)
            values = bright[targets[part]]
            values += 0.05 * domain[part, None, None, None]
            values += noise * stream.normal(size=values.shape)
            images[part] = np.rint(np.multiply(values.clip(0, 1, out=values), 255, out=values), out=values)
        inputs = torch.from_numpy(images)
        parts.append(Examples(inputs, torch.from_numpy(targets)))
        domains.append(domain)
    names = tuple(f"pattern {label}" for label in range(classes))
    return image_dataset("toy", parts[0], parts[1], names, {"domain": domains[0]})


def toy_text(*, examples: int = 400, classes: int = 6, length: int = 12, speakers: int = 8, seed: int = 0) -> Dataset:
    """Generate sequences of tokens: each speaker prefers one step from a token to the next. For tests.

    Its id column is ``speaker``.

    Parameters
    ----------
    examples
        Size of the training set; the test set is a quarter as large.
    classes
        Number of tokens in the vocabulary.
    length
        Number of tokens in an example.
    seed
        Seed of the sequences, independent of the run's.

    Raises
    ------
    ValueError
        If a number is out of range.
    """
    if min(classes, length, speakers) < 2 or examples < max(4, speakers):
        raise ValueError(
            f"classes = {classes}, length = {length} and speakers = {speakers} must be at least 2, and examples = "
            f"{examples} at least 4 and at least the number of speakers"
        )
    check_fits(TEXT * examples * (1 + length), f"examples = {examples}")
    check_fits(TEXT * classes, f"classes = {classes}")
    stream = rng(seed, "toy text")
    parts, ids = [], []
    for n in (examples, examples // 4):
        speaker = np.arange(n) % speakers
        likely = 1 + speaker[:, None] % (classes - 1)
        steps = np.where(stream.random((n, length)) < 0.8, likely, stream.integers(classes, size=(n, length)))
        sequence = np.cumsum(np.concatenate([stream.integers(classes, size=(n, 1)), steps], axis=1), axis=1) % classes
        parts.append(Examples(torch.from_numpy(sequence[:, :-1].copy()), torch.from_numpy(sequence[:, 1:].copy())))
        ids.append(speaker)
    names = tuple("abcdefghijklmnopqrstuvwxyz"[token] if token < 26 else str(token) for token in range(classes))
    return Dataset("toy-text", parts[0], parts[1], names, ids={"speaker": ids[0]})
