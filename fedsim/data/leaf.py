"""Naturally partitioned data in LEAF's JSON format."""

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Dataset, Examples, channel_statistics
from fedsim.data.places import user_path
from fedsim.data.text import tokens, vocabulary

FEMNIST_CLASSES = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)


def femnist(*, path: str) -> Dataset:
    """Read FEMNIST, 28x28 handwritten letters and digits by writer, as LEAF's preprocessing writes it.

    Its natural clients are the writers, the id column ``user``.

    Parameters
    ----------
    path
        Folder with ``train`` and ``test``, each with JSON files; as it stands or below ``$FEDSIM_DATA``.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or empty.
    ValueError
        If a file is damaged or not in LEAF's format.

    References
    ----------
    Caldas et al. 2018, LEAF: a benchmark for federated settings, arXiv 1812.01097.
    """
    return leaf(path=path, shape=(1, 28, 28), classes=FEMNIST_CLASSES)


def leaf(*, path: str, shape: tuple[int, ...] = (), classes: tuple[str, ...] = ()) -> Dataset:
    """Read any data set in LEAF's JSON format: vectors, images or texts by user.

    Its natural clients are the users, the id column ``user``; the server's test set is all users' test data.

    Parameters
    ----------
    path
        Folder with ``train`` and ``test``, each with JSON files; as it stands or below ``$FEDSIM_DATA``.
    shape
        Shape of one input, such as [1, 28, 28]; by default that of the file.
    classes
        Names of the classes; by default the labels' numbers. Texts have their characters.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or empty.
    ValueError
        If a file is damaged or not in LEAF's format, or its inputs do not have the shape.

    Notes
    -----
    A file holds ``users``, ``num_samples`` and ``user_data``, which maps a user to ``x`` and ``y``. LEAF's Shakespeare
    has strings of 80 characters as ``x`` and the next character as ``y``: one target per example.

    References
    ----------
    Caldas et al. 2018, LEAF: a benchmark for federated settings, arXiv 1812.01097.
    """
    folder = user_path(path)
    users, inputs, targets = {}, {}, {}
    for part in ("train", "test"):
        rows = list(_rows(folder / part))
        users[part] = [user for user, _, _ in rows]
        inputs[part] = [x for _, x, _ in rows]
        targets[part] = [y for _, _, y in rows]
    if isinstance(inputs["train"][0], str):
        return _text(inputs, targets, users["train"])
    train, test = (Examples(_numbers(inputs[p], shape, folder / p), _labels(targets[p], folder / p)) for p in users)
    largest = max(int(train.targets.max()), int(test.targets.max()))
    names = classes or tuple(str(label) for label in range(largest + 1))
    mean, std = channel_statistics(train.inputs, 1.0)
    return Dataset("leaf", train, test, names, 1.0, mean, std, {"user": _ids(users["train"])})


def _rows(folder: Path) -> Iterator[tuple[str, Any, Any]]:
    """Yield user, input and target of each example of a split."""
    if not (paths := sorted(folder.glob("*.json"))):
        raise FileNotFoundError(f"{folder} has no JSON file; LEAF's preprocessing writes train/*.json and test/*.json")
    empty = True
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for user in content["users"]:
                x, y = content["user_data"][user]["x"], content["user_data"][user]["y"]
                if len(x) != len(y):
                    raise ValueError(f"user {user!r} has {len(x)} inputs and {len(y)} targets")
                for row in zip(x, y, strict=True):
                    empty = False
                    yield user, *row
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{path} is damaged or not in LEAF's format ({reason}); fetch or write it again"
            ) from error
    if empty:
        raise ValueError(f"the files of {folder} hold no example; check LEAF's preprocessing")


def _ids(users: list[str]) -> np.ndarray:
    return np.unique(users, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _numbers(values: list, shape: tuple[int, ...], where: Path) -> Tensor:
    try:
        inputs = torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: inputs are not numbers of one length each ({error}); see fedsim list data"
        ) from error
    try:
        return inputs.reshape(len(values), *shape) if shape else inputs
    except RuntimeError as error:
        raise ValueError(f"{where}: inputs of {inputs[0].numel()} numbers cannot have shape = {list(shape)}") from error


def _labels(values: list, where: Path) -> Tensor:
    if not all(isinstance(value, int) for value in values):
        raise ValueError(f"{where}: targets must be whole numbers, class indices from 0")
    return torch.tensor(values, dtype=torch.int64)


def _text(inputs: dict[str, list[str]], targets: dict[str, list[str]], users: list[str]) -> Dataset:
    every = [text for part in (*inputs.values(), *targets.values()) for text in part]
    classes = vocabulary(every)
    index = {character: position for position, character in enumerate(classes)}
    lengths = {len(text) for part in inputs.values() for text in part}
    if len(lengths) > 1 or any(len(character) != 1 for part in targets.values() for character in part):
        raise ValueError(f"texts have lengths {sorted(lengths)[:5]}; they must have one, and each target one character")
    train, test = (
        Examples(
            torch.from_numpy(tokens("".join(inputs[part]), index).reshape(len(inputs[part]), -1)),
            torch.from_numpy(tokens("".join(targets[part]), index)),
        )
        for part in ("train", "test")
    )
    return Dataset("leaf", train, test, classes, ids={"user": _ids(users)})
