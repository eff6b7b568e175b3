"""Your own arrays, from an npz or safetensors file."""

import zipfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fedsim.data.dataset import Dataset, Examples, channel_statistics, numbered
from fedsim.data.places import user_path

NEEDED = ("train_inputs", "train_targets", "test_inputs", "test_targets")
IDS = "train_id_"
LARGEST = 10**6  # number of classes or tokens


def arrays(*, path: str, channels: Literal["first", "last"] = "first", classes: tuple[str, ...] = ()) -> Dataset:
    """Read your own arrays from a .npz or .safetensors file.

    Parameters
    ----------
    path
        Path of the file, as given or relative to ``$FEDSIM_DATA``. It holds ``train_inputs``, ``train_targets``,
        ``test_inputs`` and ``test_targets``, and may hold ``train_id_<column>``, the origin of each training example.
        Inputs: bytes [n, channels, height, width] or [n, height, width] are images; floats [n, ...] are normalised per
        channel or feature; other integers [n, length] are tokens. Targets: integers [n], or [n, length] for sequences.
    channels
        Position of the channels in images with four dimensions: ``last`` for [n, height, width, channels].
    classes
        Names of the classes (default: the labels' numbers, from 0 to the largest).

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is damaged, an array is missing or has a wrong type or shape, or a label without a name has no example.
    """
    place = user_path(path)
    content = _load(place)
    if missing := [name for name in NEEDED if name not in content]:
        raise ValueError(
            f"{place} has no array {missing[0]!r}; it has {', '.join(content)} and needs {', '.join(NEEDED)}"
        )
    train, test = (
        Examples(
            _inputs(content[f"{part}_inputs"], channels, f"{place}: {part}_inputs"),
            _integers(content[f"{part}_targets"], f"{place}: {part}_targets"),
        )
        for part in ("train", "test")
    )
    for part, examples in (("train", train), ("test", test)):
        if not examples.inputs.numel() or not examples.targets.numel():
            shapes = f"{tuple(examples.inputs.shape)} and {tuple(examples.targets.shape)}"
            raise ValueError(
                f"{place} has {part} inputs and targets of shapes {shapes}; it needs at least one example of each"
            )
    ids = {name.removeprefix(IDS): numbered(values) for name, values in content.items() if name.startswith(IDS)}
    scale = 255.0 if train.inputs.dtype == torch.uint8 else 1.0
    is_tokens = train.inputs.dtype == torch.int64
    mean, std = ((), ()) if is_tokens else channel_statistics(train.inputs, scale)
    return Dataset(place.stem, train, test, classes or _numbered(train, test, place), scale, mean, std, ids)


def _load(place: Path) -> dict[str, np.ndarray]:
    try:
        if place.suffix == ".safetensors":
            return load_file(place)
        if place.suffix == ".npz":
            with np.load(place, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zlib.error, zipfile.BadZipFile, SafetensorError) as error:
        raise ValueError(f"{place} is damaged or holds objects other than arrays ({error}); save it again") from error
    raise ValueError(f"{place} ends in {place.suffix!r}; give a file that ends in .npz or .safetensors")


def _inputs(values: np.ndarray, channels: str, where: str) -> torch.Tensor:
    if values.ndim < 2:
        raise ValueError(
            f"{where} has shape {values.shape}; it must have a dimension for the examples and at least one more"
        )
    if values.dtype == np.uint8:
        if values.ndim == 3:
            values = values[:, None]
        elif values.ndim == 4 and channels == "last":
            values = values.transpose(0, 3, 1, 2)
        elif values.ndim == 4 and values.shape[3] in (1, 3, 4) and values.shape[1] not in (1, 3, 4):
            raise ValueError(
                f"{where} has shape {values.shape}, as if channels came last; then set [data] channels = 'last'"
            )
        elif values.ndim != 4:
            raise ValueError(f"{where} has bytes of shape {values.shape}; images have 3 or 4 dimensions")
        return torch.from_numpy(np.ascontiguousarray(values))
    if np.issubdtype(values.dtype, np.floating):
        if values.ndim == 4 and channels == "last":
            values = values.transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return _integers(values, where)


def _integers(values: np.ndarray, where: str) -> torch.Tensor:
    if not np.issubdtype(values.dtype, np.integer) or values.ndim not in (1, 2):
        raise ValueError(f"{where} is {values.dtype} of shape {values.shape}; it must be integers of 1 or 2 dimensions")
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < LARGEST:
        raise ValueError(f"{where} is from {values.min()} to {values.max()}; it must be from 0 to {LARGEST - 1}")
    return torch.from_numpy(values.astype(np.int64))


def _numbered(train: Examples, test: Examples, place: Path) -> tuple[str, ...]:
    """Return the labels' numbers as names."""
    largest = max(int(examples.targets.max()) for examples in (train, test))
    if train.inputs.dtype == torch.int64:
        largest = max(largest, *(int(examples.inputs.max()) for examples in (train, test)))
        return tuple(map(str, range(largest + 1)))
    absent = np.flatnonzero(np.bincount(train.targets.numpy().ravel(), minlength=largest + 1) == 0)
    if len(absent):
        raise ValueError(
            f"{place}: no training example has the label {absent[0]}, but labels go up to {largest}; number "
            "them without gaps, or name them all with [data] classes"
        )
    return tuple(map(str, range(largest + 1)))
