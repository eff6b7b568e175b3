"""The IDX format of the MNIST family, plain or gzipped."""

import gzip
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from struct import Struct

import numpy as np
import torch

from fedsim.data.dataset import Dataset, Examples, image_dataset
from fedsim.data.places import find_or_download
from fedsim.memory import check_fits
from fedsim.reading import check_file

SUFFIXES = ("-images-idx3-ubyte", "-labels-idx1-ubyte")
CHUNK = 1 << 20
ENDING = Struct("<II")  # of a gzip archive: checksum and size of what it holds


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read one IDX file of bytes.

    Parameters
    ----------
    path
        Path of the file; gzipped if its name ends in ``.gz``.
    dimensions
        Number of dimensions that it must have: 3 for images, 1 for labels.

    Raises
    ------
    ValueError
        If the file is truncated, too long, corrupt, or of another kind than its name says.

    References
    ----------
    The header is 0, 0, type (8 is a byte), dimensions, then each length as a big-endian 32-bit number.
    """
    start = 4 + 4 * dimensions
    try:
        check_file(path)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(start)
            if header[:4] != bytes([0, 0, 8, dimensions]) or len(header) < start:
                raise ValueError(
                    f"{path} starts with bytes {list(header[:4])}, but its name promises an IDX file with header "
                    f"{[0, 0, 8, dimensions]}; check the file's name, or download it again"
                )
            shape = tuple(int(length) for length in np.frombuffer(header[4:], dtype=">u4"))
            check_fits(math.prod(shape), f"{path}, by its header,")
            content = np.empty(math.prod(shape), dtype=np.uint8)
            # At once, a gzip file would make a copy.
            parts = [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]
            size = sum(file.readinto(part.data) for part in parts) + len(file.read(1))
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); download the file again") from error
    if size != content.size:
        found = f"at least {size}" if path.suffix == ".gz" else path.stat().st_size - start
        raise ValueError(
            f"{path} holds {found} bytes of data, but its header promises {content.size} for shape {shape}; "
            "download the file again"
        )
    _check_archive(path, header, content)
    return content.reshape(shape)


def _check_archive(path: Path, header: bytes, content: np.ndarray) -> None:
    """Check an unpacked file by the checksum of the archive that it came from, if that is next to it."""
    archive = path.with_name(f"{path.name}.gz")
    if not archive.is_file() or archive.stat().st_size < ENDING.size:
        return
    with archive.open("rb") as file:
        file.seek(-ENDING.size, os.SEEK_END)
        checksum, size = zlib.crc32(content.data, zlib.crc32(header)), len(header) + content.size
        if file.read() != ENDING.pack(checksum, size % 2**32):
            raise ValueError(
                f"{path} does not have the checksum of {archive.name} next to it; remove it, and that one is read"
            )


def find_idx(folder: Path, name: str) -> Path | None:
    """Return the file ``name`` in ``folder``, plain or gzipped, if it exists."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def idx_dataset(
    name: str,
    data_dir: str | None,
    classes: tuple[str, ...],
    loader: str,
    *,
    loader_options: Mapping[str, str] | None = None,
    prefixes: tuple[str, str] = ("train", "t10k"),
    more_places: Sequence[Path] = (),
    first_label: int = 0,
    transposed: bool = False,
) -> Dataset:
    """Read a data set of the MNIST family from its four IDX files.

    Parameters
    ----------
    data_dir, more_places
        As in `fedsim.data.places.find_or_download`.
    loader, loader_options
        Name of torchvision's class that downloads the files, and its arguments.
    prefixes
        Beginnings of the names of the training and of the test files.
    first_label
        Label of the first class in the files.
    transposed
        Whether the files hold the images transposed.

    Raises
    ------
    FileNotFoundError
        If a file is not found and cannot be downloaded.
    ValueError
        If a file is truncated, corrupt or not what its name says.
    """
    names = [f"{prefix}{suffix}" for prefix in prefixes for suffix in SUFFIXES]

    def download(root: Path) -> None:
        from torchvision import datasets  # takes a second, and only the download needs it

        getattr(datasets, loader)(root, download=True, **(loader_options or {}))

    folder = find_or_download(
        name,
        data_dir,
        lambda place: any(find_idx(place, each) for each in names),
        download,
        folders=(name, f"{loader}/raw"),
        needs=f"the four IDX files ({names[0]} and so on)",
        more_places=more_places,
    )
    train, test = (read_split(folder, prefix, len(classes), first_label) for prefix in prefixes)
    if transposed:
        train, test = (replace(part, inputs=part.inputs.transpose(2, 3).contiguous()) for part in (train, test))
    return image_dataset(name, train, test, classes)


def read_split(folder: Path, prefix: str, classes: int, first_label: int = 0) -> Examples:
    """Read the images and labels whose file names begin with ``prefix``, and check that they match.

    Raises
    ------
    FileNotFoundError
        If one of the two files is not in the folder.
    ValueError
        If a file is damaged, the numbers of images and labels differ, or a label is not a class.
    """
    paths = []
    for suffix in SUFFIXES:
        path = find_idx(folder, prefix + suffix)
        if path is None:
            raise FileNotFoundError(
                f"{folder} has no {prefix}{suffix} or {prefix}{suffix}.gz; it must hold all four files"
            )
        paths.append(path)
    images_path, labels_path = paths
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1).astype(np.int64) - first_label
    if len(images) != len(labels):
        raise ValueError(f"{images_path} has {len(images)} images but {labels_path} has {len(labels)} labels")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        found = (
            f"labels from {labels.min() + first_label} to {labels.max() + first_label}" if len(labels) else "no labels"
        )
        raise ValueError(f"{labels_path} has {found}; they must be from {first_label} to {first_label + classes - 1}")
    return Examples(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels))
