"""Your own arrays, from an npz or safetensors file, or a folder of npy files."""

import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from fedsim.data.checks import TOKENS_RULE, looks_channels_last
from fedsim.data.dataset import Dataset, Examples, Statistics, channel_statistics, numbered, origin_names
from fedsim.data.places import user_path
from fedsim.data.target_checks import check_target_kind
from fedsim.errors import message_of
from fedsim.memory import check_fits
from fedsim.reading import check_file
from fedsim.training.targets import IGNORED, labels_of, real_targets
from fedsim.training.tasks import TASKS

NEEDED = ("train_inputs", "train_targets", "test_inputs", "test_targets")
IDS, HELD_OUT = "train_id_", "train_held_out"
LARGEST = 10**6  # number of classes or tokens
Channels = Literal["auto", "first", "last"]


def arrays(
    *,
    path: str,
    channels: Channels = "auto",
    classes: tuple[str, ...] = (),
    targets: Literal["auto", "classes", "tokens"] = "auto",
    vocabulary: int = 0,
    task: str = "auto",
) -> Dataset:
    """Read your own arrays from a .npz or .safetensors file, or a folder of .npy files.

    Parameters
    ----------
    path
        Path of the file, as given or relative to ``$FEDSIM_DATA``. It holds ``train_inputs``, ``train_targets``,
        ``test_inputs`` and ``test_targets``, and may hold ``train_id_<column>``, the origin of each training example,
        and ``train_held_out``, booleans that mark those that clients are only tested on.
        Inputs: bytes [n, channels, height, width] or [n, height, width] are images; floats [n, features] or
        [n, channels, ...] are normalised per feature or channel; other integers [n, length] are tokens. Targets:
        integers or names of classes [n], or integers [n, length] for sequences, with -100 where a position has none.
        Floats are numbers to predict, or 0 and 1 for a yes or no, and for several labels.
    channels
        Position of the channels in images and series of floats: ``last`` for [n, height, width, channels] or
        [n, length, channels], of which models get the channels first.
    classes
        Names of the classes (default: the names in the targets, or the labels' numbers, from 0 to the largest).
    targets
        Kind of the targets of tokens: ``classes`` of sentences or of their words, or ``tokens`` of the vocabulary. With
        ``auto`` they are tokens where each is the token that follows in the inputs.
    vocabulary
        Number of different tokens (default: one more than the largest).
    task
        What is learnt, as ``[data] task`` says.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is damaged, an array is missing or has a wrong type or shape, or a label without a name has no example.
    """
    place = user_path(path)
    return dataset_from(
        _load(place),
        str(place),
        place.stem,
        channels=channels,
        classes=classes,
        targets=targets,
        vocabulary=vocabulary,
        task=task,
    )


def dataset_from(
    content: Mapping[str, np.ndarray],
    where: str,
    name: str,
    *,
    channels: Channels = "auto",
    classes: tuple[str, ...] = (),
    targets: Literal["auto", "classes", "tokens"] = "auto",
    vocabulary: int = 0,
    task: str = "auto",
    statistics: Callable[[Tensor, float], Statistics] = channel_statistics,
) -> Dataset:
    """Return the data set that arrays with the names and meanings of `arrays` make up.

    Parameters
    ----------
    where
        Origin of the arrays, with which messages begin.
    statistics
        Function from training inputs and their scale to the mean and deviation of each channel.

    Raises
    ------
    ValueError
        If an array is missing or has a wrong type or shape, or a label without a name has no example.
    """
    if missing := [name for name in NEEDED if name not in content]:
        raise ValueError(
            f"{where} has no array {missing[0]!r}; it has {', '.join(content) or 'none'} and needs {', '.join(NEEDED)}"
        )
    kinds = {part: content[f"{part}_targets"].dtype for part in ("train", "test")}
    if len({kind.kind in "US" for kind in kinds.values()}) > 1:
        raise ValueError(
            f"{where} has targets of {kinds['train']} to train and of {kinds['test']} to test; make them alike"
        )
    names = classes or _names(content["train_targets"], where)
    train, test = (_examples(content, part, where, channels, names, task) for part in ("train", "test"))
    given = {column.removeprefix(IDS): values for column, values in content.items() if column.startswith(IDS)}
    ids = {column: _ids(values, f"{IDS}{column}", where) for column, values in given.items()}
    origins = {column: origin_names(ids[column], _readable(values)) for column, values in given.items()}
    held_out = content[HELD_OUT] if HELD_OUT in content else np.zeros(0, dtype=bool)
    scale = 255.0 if train.inputs.dtype == torch.uint8 else 1.0
    if train.targets.is_floating_point():
        is_text = train.inputs.dtype == torch.int64
        tokens = _vocabulary(train, test, vocabulary, where) if is_text else ()
        fitted = None if is_text else statistics(train.inputs, scale)
        mean, std = fitted or ((), ())
        return Dataset(name, train, test, names, scale, mean, std, ids, tokens, task, fitted, held_out, origins=origins)
    if train.inputs.dtype != torch.int64:
        mean, std = statistics(train.inputs, scale)
        known = names or _numbered(train, test, where)
        return Dataset(
            name, train, test, known, scale, mean, std, ids, fitted=(mean, std), held_out=held_out, origins=origins
        )
    tokens = _vocabulary(train, test, vocabulary, where)
    if targets == "tokens" or task == "next-token" or (targets == "auto" and _follow(train)):
        largest = max(int(labels_of(part.targets).max()) for part in (train, test))
        known = names or _counted(max(len(tokens), 0 if vocabulary else largest + 1))
        return Dataset(name, train, test, known, ids=ids, held_out=held_out, origins=origins)
    known = names or _numbered(train, test, where)
    return Dataset(name, train, test, known, ids=ids, vocabulary=tokens, held_out=held_out, origins=origins)


def _load(place: Path) -> dict[str, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old file formats and damaged headers
        return _content(place)


def _content(place: Path) -> dict[str, np.ndarray]:
    content: dict[str, np.ndarray] = {}
    name = ""
    try:
        if place.suffix == ".safetensors":
            check_fits(place.stat().st_size, "it")
            return load_file(place)
        if place.is_dir():
            paths = sorted(place.glob("*.npy"))
            check_fits(sum(check_file(path).st_size for path in paths), "it")
            for path in paths:
                name = path.stem
                # Mapped first, so that no memory is taken that a damaged header asks for.
                content[name] = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
            return content
        if place.suffix == ".npz":
            with zipfile.ZipFile(place) as archive:
                check_fits(sum(info.file_size for info in archive.infolist()), "unpacked, it")
            with np.load(place, allow_pickle=False) as file:
                for name in file.files:
                    content[name] = file[name]
                    if not isinstance(content[name], np.ndarray):  # NumPy returns the bytes of what is no .npy file
                        raise ValueError("it is no array")
            return content
    except MemoryError as error:
        raise MemoryError(f"{place}: {error}") from error
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f"{place} is damaged or holds objects other than arrays{f', at {name}' if name else ''} "
            f"({message_of(error)}); save it again, texts as numpy.array(values, dtype=str)"
        ) from error
    raise ValueError(f"{place} ends in {place.suffix!r}; give a file that ends in .npz or .safetensors")


def _examples(
    content: Mapping[str, np.ndarray], part: str, where: str, channels: Channels, names: Sequence[str], task: str
) -> Examples:
    dtype = _dtype_of(content["train_inputs"])
    inputs = _inputs(content[f"{part}_inputs"], channels, f"{where}: {part}_inputs", dtype)
    targets = _targets(content[f"{part}_targets"], f"{where}: {part}_targets", inputs, names, task)
    if not inputs.numel() or not targets.numel():
        shapes = f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        raise ValueError(
            f"{where} has {part} inputs and targets of shapes {shapes}; it needs at least one example of each"
        )
    if not targets.is_floating_point() and not labels_of(targets).numel():
        raise ValueError(f"{where}: all {part} targets are {IGNORED}, which counts as no target; give at least one")
    return Examples(inputs, targets)


def _dtype_of(inputs: np.ndarray) -> type[np.floating]:
    """Return the type of real inputs: vectors of float64 stay, as float32 has too few digits for a time in seconds."""
    return np.float64 if inputs.ndim == 2 and inputs.dtype == np.float64 else np.float32


def _inputs(values: np.ndarray, channels: Channels, where: str, dtype: type[np.floating]) -> Tensor:
    if values.ndim < 2:
        raise ValueError(
            f"{where} has shape {values.shape}; it must have a dimension for the examples and at least one more"
        )
    is_bytes, is_real = values.dtype == np.uint8, np.issubdtype(values.dtype, np.floating)
    if is_bytes or is_real:
        if is_bytes and values.ndim not in (3, 4):
            raise ValueError(
                f"{where} has bytes of shape {values.shape}; images have 3 or 4 dimensions: give tokens as int64, and "
                "other numbers as floats"
            )
        if channels == "auto" and looks_channels_last(values):
            raise ValueError(
                f"{where} has shape {values.shape}, as if channels came last; then set [data] channels = 'last', else "
                "'first'"
            )
        if is_bytes and values.ndim == 3:
            values = values[:, None]
        elif channels == "last":
            values = np.moveaxis(values, -1, 1)  # of vectors, that changes nothing
        with np.errstate(over="ignore"):  # what is no longer finite is refused with the whole data set
            return torch.from_numpy(np.ascontiguousarray(values, dtype=values.dtype if is_bytes else dtype))
    if not np.issubdtype(values.dtype, np.integer) or values.ndim != 2:
        raise ValueError(
            f"{where} is {values.dtype} of shape {values.shape}; it must be bytes (images), floats, or integers of 2 "
            "dimensions (tokens)"
        )
    return _whole(values, where, f"; {TOKENS_RULE}")


def _targets(values: np.ndarray, where: str, inputs: Tensor, names: Sequence[str], task: str) -> Tensor:
    described = f"{where} is {values.dtype} of shape {values.shape}"
    is_real = task in TASKS and not TASKS[task].of_indices
    if values.dtype.kind in "US":
        if values.ndim != 1:
            raise ValueError(f"{described}; names of classes have shape [n]")
        place = {name: index for index, name in enumerate(names)}
        found = _texts(values, where).tolist()
        if unknown := [name for name in found if name not in place]:
            raise ValueError(f"{where} has the class {unknown[0]!r}; known are: {', '.join(names)}")
        return torch.tensor([place[name] for name in found], dtype=torch.float32 if is_real else torch.int64)
    if values.dtype.kind not in "iubf":
        raise ValueError(f"{described}; it must be integers or names of classes")
    if values.dtype.kind == "f" and task in TASKS and not is_real and (values == np.round(values)).all():
        values = values.astype(np.int64)
    is_whole = values.dtype.kind != "f" and not is_real
    targets = (
        _whole(values, where, f"; {IGNORED} marks a target to ignore", ignored=True)
        if is_whole
        else torch.from_numpy(values.astype(np.float32 if is_real else values.dtype))
    )
    if targets.numel():
        check_target_kind(described, targets, inputs, len(names) or None, cast="astype(int)", task=task)
    return targets


def _whole(values: np.ndarray, where: str, hint: str, *, ignored: bool = False) -> Tensor:
    counted = values[values != IGNORED] if ignored and values.dtype.kind == "i" else values
    if counted.size and not 0 <= int(counted.min()) <= int(counted.max()) < LARGEST:
        raise ValueError(
            f"{where} is from {counted.min()} to {counted.max()}; it must be from 0 to {LARGEST - 1}{hint}"
        )
    return torch.from_numpy(values.astype(np.int64))


def _ids(values: np.ndarray, name: str, where: str) -> np.ndarray:
    if values.ndim != 1:
        raise ValueError(f"{where}: {name} has shape {values.shape}; give one value for each example, of shape [n]")
    if values.dtype.kind == "f" and len(missing := np.flatnonzero(np.isnan(values))):
        raise ValueError(f"{where}: {name} has no value at example {missing[0]}; give each example its origin")
    return numbered(values)


def _readable(values: np.ndarray) -> np.ndarray:
    return np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values


def _names(targets: np.ndarray, where: str) -> tuple[str, ...]:
    """Return the names of the classes where the targets are texts, sorted."""
    return tuple(np.unique(_texts(targets, f"{where}: train_targets")).tolist()) if targets.dtype.kind in "US" else ()


def _texts(values: np.ndarray, where: str) -> np.ndarray:
    try:
        return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} has bytes that are not UTF-8; save it as numpy.array(values, dtype=str)") from error


def _counted(number: int) -> tuple[str, ...]:
    return tuple(map(str, range(number)))


def _vocabulary(train: Examples, test: Examples, size: int, where: str) -> tuple[str, ...]:
    largest = max(int(examples.inputs.max()) for examples in (train, test))
    if size > LARGEST:
        raise ValueError(f"vocabulary = {size} must be at most {LARGEST}")
    if size and largest >= size:
        raise ValueError(f"{where} has the token {largest}, and vocabulary = {size} must be larger; correct it")
    return _counted(size or largest + 1)


def _follow(examples: Examples) -> bool:
    """Tell whether each target that counts is the token that follows in the inputs."""
    if examples.targets.shape != examples.inputs.shape:
        return False
    real = real_targets(examples.targets[:, :-1])
    same = examples.targets[:, :-1] == examples.inputs[:, 1:]
    return bool(same.all() if real is None else same[real].all())


def _numbered(train: Examples, test: Examples, where: str) -> tuple[str, ...]:
    """Return the labels' numbers as names."""
    largest = max(int(labels_of(examples.targets).max()) for examples in (train, test))
    absent = np.flatnonzero(np.bincount(labels_of(train.targets).numpy(), minlength=largest + 1) == 0)
    if len(absent):
        more = ", subtract 1 if they are counted from 1" if absent[0] == 0 else ""
        if train.inputs.dtype == torch.int64:
            more += ", set [data] task = 'next-token' if they are tokens"
        raise ValueError(
            f"{where}: no training example has the label {absent[0]}, but labels go up to {largest}; number "
            f"them without gaps{more}, or name all classes"
        )
    return _counted(largest + 1)
