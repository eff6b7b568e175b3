"""Random streams: each is a function of its path, so nothing that happens elsewhere can disturb it."""

import hashlib

import numpy as np

PathPart = int | str


def derive(seed: int, *path: PathPart) -> int:
    """Return the 64-bit seed of the stream at ``path``, e.g. ``derive(0, "train", 3, 7)``.

    Notes
    -----
    SHA-256 rather than Python's ``hash``, whose salt differs from process to process.
    """
    name = "/".join(f"{type(part).__name__}:{part}" for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def rng(seed: int, *path: PathPart) -> np.random.Generator:
    """Return a fresh NumPy generator at the start of the stream at ``path``."""
    return np.random.default_rng(derive(seed, *path))
