"""Data sets of torch, or arrays, as a user's function returns them: ``[data] name = "module:function"``."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from fedsim.data.arrays import NEEDED, dataset_from
from fedsim.data.dataset import Dataset, Statistics, channel_statistics
from fedsim.data.identity import identity_of
from fedsim.data.image_cache import cached
from fedsim.data.pictures import pixels_of
from fedsim.errors import error_line
from fedsim.shortening import a_type

PARTS = ("train", "test")
# Number of examples that are read twice: a flip of every other image goes unnoticed once in 65,536 times.
READ_TWICE = 16
GIVE = (
    "return a fedsim.data.Dataset, a training and a test set of torch (map-style, giving pairs of an input and a "
    f"target), or a dict of arrays with the names {', '.join(NEEDED)}"
)
STATISTICS = "statistics.json"
CACHE = "examples-2"  # another number than that of versions that wrote something else for the same examples
logger = logging.getLogger(__name__)


@runtime_checkable
class MapStyle(Protocol):
    """A map-style data set of torch, or a list: its examples are pairs of an input and a target."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: int) -> Any:
        """Return an example."""


def as_dataset(found: object, name: str, task: str = "auto", code: Sequence[str] = ()) -> Dataset:
    """Return what a user's function returns as a `Dataset`.

    Parameters
    ----------
    found
        A `Dataset`; a pair of map-style data sets, to train and to test, or a dict of them by these names; a pair of
        pairs of arrays; or a dict of arrays named as in the data set ``arrays``. Map-style data sets are read once,
        into a memory-mapped cache that all processes share.
    name
        Name by which the function was chosen.
    task
        What is learnt, as ``[data] task`` says.
    code
        Hashes of the function's sources, imported modules included; examples are read again when one changes.

    Raises
    ------
    ValueError
        If it is none of these, an example differs from the others in type or shape or is not the same when it is read
        twice, or the arrays do not make up a data set.
    """
    if isinstance(found, Dataset):
        return found
    if isinstance(found, Mapping) and "train" not in found:
        return dataset_from(_as_arrays(found, name), name, name, channels="first", task=task)
    parts = dict(zip(PARTS, found, strict=False)) if isinstance(found, tuple | list) and len(found) == 2 else found
    if not isinstance(parts, Mapping) or set(parts) != set(PARTS):
        given = a_type(found) + (f" of {len(found)}" if isinstance(found, tuple | list) else "")
        raise ValueError(f"{name!r} returns {given}; {GIVE}")
    if all(isinstance(part, tuple) and len(part) == 2 and _is_array(part[0]) for part in parts.values()):
        content = {
            f"{part}_{what}": values
            for part in PARTS
            for what, values in zip(("inputs", "targets"), parts[part], strict=True)
        }
        return dataset_from(_as_arrays(content, name), name, name, channels="first", task=task)
    sets = {part: _checked(parts[part], f"{name!r}: its {part} set") for part in PARTS}
    return read_examples(sets, name, identity_of((sets, code)), classes=_classes_of(sets, name), task=task)


def _is_array(values: object) -> bool:
    return hasattr(values, "__array__")  # arrays, tensors, and tables and columns of pandas


def _as_arrays(content: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    return {key: _as_array(values, f"{name!r}: {key}") for key, values in content.items()}


def _as_array(values: Any, where: str) -> np.ndarray:
    """Return a tensor, an array or a number as an array of one of the types that NumPy has."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{where} is no array ({error}); give numbers of one shape") from error
    if array.dtype.kind not in "biufUSc":
        raise ValueError(f"{where} holds {type(values).__name__}; give numbers, tensors, NumPy arrays or pictures")
    return array


def _checked(part: object, where: str) -> MapStyle:
    if type(part).__name__ == "DataFrame":  # of pandas or others: it gives columns where examples are asked for
        raise ValueError(
            f"{where} is a DataFrame; give (frame[features], frame[target]), or its file by [data] name = 'table'"
        )
    if isinstance(part, IterableDataset) or not isinstance(part, MapStyle):
        kind = "an iterable data set" if isinstance(part, Iterable) else a_type(part)
        if isinstance(part, DataLoader):
            raise ValueError(f"{where} is a DataLoader, and fedsim makes the batches; give its .dataset")
        raise ValueError(f"{where} is {kind}; give one with __len__ and __getitem__, such as list(...) of its examples")
    if not len(part):
        raise ValueError(f"{where} has no example; give at least one")
    return part


def read_examples(
    parts: Mapping[str, MapStyle],
    name: str,
    identity: str | None,
    *,
    classes: tuple[str, ...] = (),
    task: str = "auto",
) -> Dataset:
    """Return the data set of two map-style ones, ``train`` and ``test``, whose examples are read once.

    Parameters
    ----------
    identity
        What changes when an example does, by which the cache is found; without it they are read in every process.
    classes
        Names of the classes (default: the names in the targets, or the labels' numbers).

    Raises
    ------
    ValueError
        If an example differs from the others in type or shape, or is not the same when it is read twice.
    """
    count = sum(map(len, parts.values()))
    what = f"{count:,} examples of {name!r}"
    fill = partial(_fill, parts, name)
    if identity:
        size = count * _example(parts["train"], 0, f"{name!r}: its train set")[0].nbytes
        folder = cached(f"{CACHE}-{identity}", fill, what, size)
        # Copy on write: pages are read when they are needed, shared by all processes, and never written back.
        content, statistics = _load(folder, mmap_mode="c")
    else:
        logger.warning(
            f"{what} are read in every process, as they come from something without a name, such as a lambda or an "
            "open file; with functions and paths instead they are read once"
        )
        with TemporaryDirectory(prefix="fedsim-examples-") as temporary:
            fill(Path(temporary))
            content, statistics = _load(Path(temporary))
    are_numbers = content["train_targets"].dtype.kind == "f" and task not in ("binary", "multi-label")
    return dataset_from(
        content,
        repr(name),
        name,
        channels="first",
        classes=() if are_numbers else classes,
        task=task,
        statistics=lambda *_: statistics,
    )


def _load(folder: Path, **settings: Any) -> tuple[dict[str, np.ndarray], Statistics]:
    content = {array: np.load(folder / f"{array}.npy", allow_pickle=False, **settings) for array in NEEDED}
    mean, std = json.loads((folder / STATISTICS).read_text())
    return content, (tuple(mean), tuple(std))


def _fill(parts: Mapping[str, MapStyle], name: str, folder: Path) -> None:
    """Write the inputs and targets of all examples, and the statistics of the inputs to train on."""
    first = _example(parts["train"], 0, f"{name!r}: its train set")
    for part, examples in parts.items():
        where = f"{name!r}: its {part} set"
        _check_repeats(examples, where)
        targets = []
        # Written one by one: in a memory-mapped file, a full disk would end Python.
        with (folder / f"{part}_inputs.npy").open("wb") as file:
            whole = {"descr": first[0].dtype.str, "fortran_order": False, "shape": (len(examples), *first[0].shape)}
            np.lib.format.write_array_header_1_0(file, whole)
            for index in range(len(examples)):
                example = _example(examples, index, where)
                if example[0].dtype.kind == first[0].dtype.kind == "f":
                    example = example[0].astype(first[0].dtype), example[1]
                for what, values, expected in zip(("an input", "a target"), example, first, strict=True):
                    _check_alike(values, expected, f"{where} has {what}", index, named=what == "a target")
                file.write(example[0].tobytes())
                targets.append(example[1])
        np.save(folder / f"{part}_targets.npy", np.stack(targets))
    inputs = torch.from_numpy(np.load(folder / "train_inputs.npy", mmap_mode="c"))
    scale = 255.0 if inputs.dtype == torch.uint8 else 1.0
    statistics = ((), ()) if inputs.dtype == torch.int64 else channel_statistics(inputs, scale)
    (folder / STATISTICS).write_text(json.dumps(statistics))


def _check_repeats(examples: MapStyle, where: str) -> None:
    for index in range(min(READ_TWICE, len(examples))):
        once, again = (_example(examples, index, where) for _ in range(2))
        if any(one.tobytes() != other.tobytes() for one, other in zip(once, again, strict=True)):
            raise ValueError(
                f"{where} gives another example {index} when it is read twice; remove random transforms, whose first "
                "draw would be kept for all rounds; [data] flip and crop augment training images, and others can be "
                "the first module of a model of yours, which acts where self.training is true"
            )


def _check_alike(values: np.ndarray, first: np.ndarray, where: str, index: int, *, named: bool) -> None:
    is_named = named and values.dtype.kind == first.dtype.kind == "U"  # names of classes have different lengths
    if values.shape == first.shape and (values.dtype == first.dtype or is_named):
        return
    found, expected = (f"{each.dtype} of shape {each.shape}" for each in (values, first))
    raise ValueError(
        f"{where} of {found} at example {index}, and the first one to train on is {expected}; make them alike, such as "
        "with torchvision.transforms.Resize((32, 32)) for pictures"
    )


def _example(examples: MapStyle, index: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the input and the target of an example: float32, bytes or int64, and names as texts.

    Vectors of float64 stay, as float32 has too few digits for a time in seconds.
    """
    try:
        example = examples[index]
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"{where} cannot give example {index}: {error_line(error)}") from error
    if not isinstance(example, tuple | list) or len(example) != 2:
        kind = type(example).__name__ + (f" of {len(example)}" if isinstance(example, tuple | list) else "")
        raise ValueError(f"{where} gives a {kind} as example {index}; give a pair of an input and a target")
    given, target = example
    if isinstance(given, Image.Image):
        try:
            given = pixels_of(given, "L" if given.mode in ("L", "1") else "RGB")
        except (OSError, ValueError) as error:
            raise ValueError(f"{where} has a picture at example {index}: {error}") from error
    inputs = _as_array(given, f"{where}, input of example {index},")
    inputs = _plain(inputs) if inputs.dtype != np.float64 or inputs.ndim != 1 else inputs
    if not inputs.ndim:
        raise ValueError(f"{where} has a number as input of example {index}; give a vector, such as [value]")
    if inputs.dtype == np.uint8 and inputs.ndim == 2:
        inputs = inputs[None]
    return inputs, _plain(_as_array(target, f"{where}, target of example {index},"))


def _plain(values: np.ndarray) -> np.ndarray:
    """Return values of one of the types that a data set has, so that not every file has its own."""
    match values.dtype.kind:
        case "f":
            with np.errstate(over="ignore"):  # what is no longer finite is refused with the whole data set
                return np.ascontiguousarray(values, np.float32).reshape(values.shape)
        case "i" | "u" if values.dtype != np.uint8 or not values.ndim:
            return np.ascontiguousarray(values, np.int64).reshape(values.shape)
    return values


def _classes_of(sets: Mapping[str, MapStyle], name: str) -> tuple[str, ...]:
    """Return the names of the classes that the sets have; where both have some, they must be the same."""
    train, test = (_classes(sets[part]) for part in PARTS)
    if train and test and train != test:
        odd = min(set(train) ^ set(test), default=test[0])
        raise ValueError(
            f"{name!r}: its train set has {len(train)} classes and its test set {len(test)}, in which {odd!r} differs, "
            "so that one label may be two classes; give both sets the same classes in the same order"
        )
    return train


def _classes(examples: object) -> tuple[str, ...]:
    """Return the names that a training set, or the one that it is a part of, has as ``classes``; empty without."""
    while not isinstance(names := getattr(examples, "classes", None), list | tuple):
        if (whole := getattr(examples, "dataset", None)) is None:
            return ()
        examples = whole
    return tuple(map(str, names))
