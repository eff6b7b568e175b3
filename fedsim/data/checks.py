"""Checks that a data set can be trained on: what is wrong is named with the rule and the remedy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Dataset, Examples
from fedsim.data.target_checks import check_labels, check_target_kind, first_with
from fedsim.data.tasks import task_of
from fedsim.shortening import a_type

# Numbers of channels of an image.
CHANNELS = (1, 3, 4)
TOKENS_RULE = "integers are tokens: give a table of numbers as floats, and images as uint8 or floats"


def check_dataset(dataset: Dataset) -> None:
    """Check that a data set can be trained on.

    Raises
    ------
    ValueError
        If inputs or targets have a wrong type, shape or value, or the numbers of inputs, targets, means, deviations or
        ids do not match, or a part has no example.
    """
    for what, names in (("classes", dataset.classes), ("vocabulary", dataset.vocabulary)):
        if not isinstance(names, Sequence) or isinstance(names, str):
            example = f", such as tuple(map(str, range({names})))" if isinstance(names, int) else ""
            raise ValueError(f"{dataset.name!r} has {what} = {_short(names)}; give a tuple of names{example}")
    for part, examples in (("training", dataset.train), ("test", dataset.test)):
        _check_tensors(examples, f"{dataset.name!r}: its {part} set")
    # Of one class, every loss is 0 and every accuracy 1.
    if not dataset.train.targets.is_floating_point() and len(dataset.classes) < 2:
        raise ValueError(
            f"{dataset.name!r} has classes = {_short(dataset.classes)}; there must be at least two; for a yes or no, "
            "give ('no', 'yes') and targets 0 and 1"
        )
    for part, examples in (("training", dataset.train), ("test", dataset.test)):
        where = f"{dataset.name!r}: its {part} set"
        _check_inputs(examples.inputs, where)
        if examples.inputs.shape[1:] != dataset.train.inputs.shape[1:]:
            raise ValueError(
                f"{where} has inputs of shape {tuple(examples.inputs.shape[1:])}, not {dataset.shape} as in training"
            )
        if examples.inputs.dtype != dataset.train.inputs.dtype:
            raise ValueError(
                f"{where} has inputs of {examples.inputs.dtype}, not {dataset.train.inputs.dtype} as in training"
            )
        _check_targets(examples, dataset, where)
        if dataset.tokens:
            _check_tokens(examples.inputs, dataset, where)
    _check_statistics(dataset)
    _check_ids(dataset)
    _check_held_out(dataset)


def looks_channels_last(inputs: Tensor | np.ndarray) -> bool:
    """Tell whether images, shape [n, ...], have the shape [n, height, width, channels] rather than channels first."""
    if inputs.ndim != 4:
        return False
    _, height, width, channels = inputs.shape
    return channels in CHANNELS and height not in CHANNELS and channels < min(height, width)


def _check_tensors(examples: Any, where: str) -> None:
    if not isinstance(examples, Examples):
        raise ValueError(f"{where} is {a_type(examples)}; give fedsim.data.Examples(inputs, targets)")
    for what, values in (("inputs", examples.inputs), ("targets", examples.targets)):
        if not isinstance(values, Tensor) or not values.ndim:
            give = f"torch.from_numpy({what})" if isinstance(values, np.ndarray) else f"torch.tensor({what})"
            raise ValueError(f"{where} has {what} of type {type(values).__name__}; give a torch.Tensor, as by {give}")
        odd = {
            "are on another device than the CPU": (values.device.type != "cpu", "cpu()"),
            "require a gradient": (values.requires_grad, "detach()"),
            "are not dense": (values.layout != torch.strided, "to_dense()"),
        }
        if found := next(((kind, give) for kind, (is_odd, give) in odd.items() if is_odd), None):
            raise ValueError(f"{where} has {what} that {found[0]}; give {what}.{found[1]}")
    inputs, targets = len(examples.inputs), len(examples.targets)
    if not 0 < inputs == targets:
        raise ValueError(f"{where} has {inputs} inputs and {targets} targets; the numbers must be equal and positive")


def _check_inputs(inputs: Tensor, where: str) -> None:
    shape = tuple(inputs.shape)
    if inputs.numel() == 0:
        raise ValueError(f"{where} has inputs of shape {shape[1:]}; each input must have at least one number")
    if inputs.ndim < 2:
        raise ValueError(f"{where} has inputs of shape {shape}; give {(*shape, 1)}: inputs.unsqueeze(1)")
    if not (inputs.dtype in (torch.uint8, torch.int64) or inputs.is_floating_point() or inputs.is_complex()):
        raise ValueError(
            f"{where} has inputs of {inputs.dtype}; give tokens as int64, images as uint8 or floats, and other numbers "
            "as floats"
        )
    # Real numbers in four dimensions need not be images: only those that hardly can be anything else are refused.
    is_colour = shape[-1] == 3 and len(shape) == 4 and shape[1] == shape[2]
    if (inputs.dtype == torch.uint8 or is_colour) and looks_channels_last(inputs):
        raise ValueError(
            f"{where} has images of shape {shape[1:]}, as if channels came last; give [n, channels, height, width]: "
            "inputs.permute(0, 3, 1, 2)"
        )
    is_exact = not (inputs.is_floating_point() or inputs.is_complex())
    if not is_exact and not bool((finite := torch.isfinite(inputs)).all()):
        bad = first_with(~finite)
        raise ValueError(f"{where} has inputs that are not finite, first at example {bad}; remove or replace them")


def _check_targets(examples: Examples, dataset: Dataset, where: str) -> None:
    targets = examples.targets
    described = f"{where} has targets of {targets.dtype}, shape {tuple(targets.shape)}"
    check_target_kind(described, targets, examples.inputs, len(dataset.classes), task=dataset.task)
    if targets.is_floating_point():
        _check_numbers(described, targets, dataset)
    elif targets.dtype != torch.int64:
        raise ValueError(f"{described}; give class indices as int64: targets.long()")
    if targets.shape[1:] != dataset.train.targets.shape[1:]:
        raise ValueError(
            f"{where} has targets of shape {tuple(targets.shape[1:])} per example, not "
            f"{tuple(dataset.train.targets.shape[1:])} as in training"
        )
    if not targets.is_floating_point():
        check_labels(where, targets, len(dataset.classes))


def _check_numbers(described: str, targets: Tensor, dataset: Dataset) -> None:
    """Check targets that are no class indices: numbers to predict, or 0 and 1 for each label."""
    task = task_of(dataset)
    shape, names = tuple(targets.shape), len(dataset.classes)
    columns = shape[1] if len(shape) == 2 else 1
    fits = {"binary": columns == 1, "multi-label": len(shape) == 2 and columns > 1, "regression": True}
    is_number = task.name == "regression" or bool(((targets == 0) | (targets == 1)).all())
    if not (fits.get(task.name, False) and is_number and len(shape) <= 2):
        raise ValueError(f"{described}, which do not fit the task {task.name!r}; give {task.targets}")
    if task.name == "binary" and names not in (0, 2):
        raise ValueError(f"{dataset.name!r} has {names} classes, and a yes or no has two; give the names of 0 and 1")
    if task.name == "multi-label" and names not in (0, columns):
        raise ValueError(f"{described}, and {names} names of labels; give one for each column as classes")


def _check_tokens(inputs: Tensor, dataset: Dataset, where: str) -> None:
    low, high = int(inputs.min()), int(inputs.max())
    if low >= 0 and high < dataset.tokens:
        return
    rule = f"{where} has tokens from {low} to {high}; they must be from 0 to {dataset.tokens - 1}"
    without = "" if dataset.vocabulary else ", as without a vocabulary it is the classes"
    raise ValueError(f"{rule}{without}; {TOKENS_RULE}")


def _check_statistics(dataset: Dataset) -> None:
    name, mean, std = repr(dataset.name), dataset.mean, dataset.std
    for what, values in (("mean", mean), ("std", std)):
        if not isinstance(values, tuple | list) or not all(isinstance(each, float | int) for each in values):
            raise ValueError(f"{name} has {what} = {_short(values)}; give a tuple with a number for each channel")
    channels = dataset.shape[0]
    if not len(mean) == len(std) or len(mean) not in (0, 1, channels):
        raise ValueError(
            f"{name} has {len(mean)} means and {len(std)} standard deviations for {channels} channels; give one of "
            "each per channel"
        )
    if mean and dataset.tokens:
        raise ValueError(
            f"{name} has a mean of tokens, which are not normalised; {TOKENS_RULE}, or remove mean and std"
        )
    if wrong := [place for place, value in enumerate(std) if not 0 < value < math.inf]:
        raise ValueError(
            f"{name} has std = {std[wrong[0]]} in channel {wrong[0]}; it must be more than 0 and finite, and 1 for a "
            "constant channel"
        )
    if not all(map(math.isfinite, mean)) or not 0 < dataset.scale < math.inf:
        raise ValueError(
            f"{name} has mean = {_short(tuple(mean))} and scale = {dataset.scale}; they must be finite, and scale more "
            "than 0"
        )


def _check_ids(dataset: Dataset) -> None:
    if not isinstance(dataset.ids, Mapping):
        raise ValueError(f"{dataset.name!r} has ids = {_short(dataset.ids)}; give a dict of a name and its NumPy array")
    for column, ids in dataset.ids.items():
        if not isinstance(ids, np.ndarray):
            raise ValueError(
                f"{dataset.name!r} has ids {column!r} of type {type(ids).__name__}; give a NumPy array of integers"
            )
        if ids.shape != (len(dataset.train),):
            raise ValueError(
                f"{dataset.name!r} has {len(ids)} ids {column!r} for {len(dataset.train)} training examples"
            )
        if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0:
            raise ValueError(f"{dataset.name!r} has ids {column!r} of {ids.dtype}; they must be non-negative integers")
    _check_origins(dataset)


def _check_origins(dataset: Dataset) -> None:
    rule = "give a dict of a column of ids and its names, texts in the order of the ids"
    if not isinstance(dataset.origins, Mapping):
        raise ValueError(f"{dataset.name!r} has origins = {_short(dataset.origins)}; {rule}")
    for column, names in dataset.origins.items():
        if column not in dataset.ids:
            raise ValueError(f"{dataset.name!r} has origins {column!r} without ids of this name; {rule}")
        if (
            isinstance(names, str)
            or not isinstance(names, Sequence)
            or not all(isinstance(each, str) for each in names)
        ):
            raise ValueError(f"{dataset.name!r} has origins {column!r} = {_short(names)}; {rule}")
        if len(names) <= (largest := int(dataset.ids[column].max())):
            raise ValueError(
                f"{dataset.name!r} has {len(names)} origins {column!r}, and an id is {largest}; name every id, from 0"
            )


def _check_held_out(dataset: Dataset) -> None:
    marks, n = dataset.held_out, len(dataset.train)
    if not isinstance(marks, np.ndarray) or marks.dtype != bool or marks.shape not in ((0,), (n,)):
        raise ValueError(
            f"{dataset.name!r} has held_out = {_short(marks)}; give a NumPy array of booleans, shape ({n},)"
        )
    if len(marks) and marks.all():
        raise ValueError(f"{dataset.name!r} holds all training examples out for tests; leave some to train on")


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) < 60 else f"{text[:56]} ..."
