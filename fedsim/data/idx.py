"""The IDX format of the MNIST family, plain or gzipped."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from fedsim.data.dataset import Examples

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read one IDX file of bytes.

    Parameters
    ----------
    path
        The file; gzipped if its name ends in ``.gz``.
    dimensions
        How many it must have: 3 for images, 1 for labels.

    Raises
    ------
    ValueError
        If the file is truncated, too long, corrupt, or not of the kind that its name says.

    References
    ----------
    The header is 0, 0, type (8 is a byte), dimensions, then each length as a big-endian 32-bit number.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); fetch the file again") from error
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise ValueError(
            f"{path} starts with bytes {list(content[:4])}, but its name promises an IDX file with header "
            f"{[0, 0, 8, dimensions]}; check that the file has its right name, or fetch it again"
        )
    shape = tuple(int(length) for length in np.frombuffer(content[4:header], dtype=">u4"))
    if len(content) != header + math.prod(shape):
        raise ValueError(
            f"{path} holds {len(content) - header} bytes of data, but its header promises {math.prod(shape)} "
            f"for shape {shape}; fetch the file again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()


def find_idx(folder: Path, name: str) -> Path | None:
    """Return the file ``name`` in ``folder``, plain or gzipped, if it is there."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def read_split(folder: Path, split: str, classes: int) -> Examples:
    """Read images and labels of ``split`` ("train" or "test") and check them against each other.

    Raises
    ------
    FileNotFoundError
        If one of the two files is not in the folder.
    ValueError
        If a file is damaged, the numbers of images and labels differ, or a label is not a class.
    """
    paths = [find_idx(folder, name) for name in FILES[split]]
    for path, name in zip(paths, FILES[split], strict=True):
        if path is None:
            raise FileNotFoundError(f"{folder} has no {name} or {name}.gz; the folder must hold all four IDX files")
    images_path, labels_path = (path for path in paths if path is not None)
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise ValueError(f"{images_path} has {len(images)} images but {labels_path} has {len(labels)} labels")
    if len(labels) == 0 or labels.max() >= classes:
        largest = int(labels.max()) if len(labels) else None
        raise ValueError(f"{labels_path}: the largest label is {largest}; it must be from 0 to {classes - 1}")
    return Examples(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))
