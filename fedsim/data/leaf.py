"""Naturally partitioned data in LEAF's JSON format."""

import json
import math
import re
import string
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.data.checks import looks_channels_last
from fedsim.data.dataset import Dataset, Examples, channel_statistics, numbered, origin_names
from fedsim.data.places import user_path
from fedsim.data.text import tokens, vocabulary, word_tokens, word_vocabulary
from fedsim.errors import message_of
from fedsim.reading import read_text

LARGEST = 10**6  # number of classes
# How LEAF's scripts have sampled and split, which they append to a name, as in all_data_0_niid_05_keep_0_train_9.
SAMPLING = re.compile(r"_(?:n?iid_[\d_-]+_)?keep_\d+_.*")
# A tweet of Sent140 is its id, date, query, user and text, and whether it is from the published training or test file.
TWEET, TEXT = (5, 6), 4
FEMNIST_CLASSES = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)


def femnist(*, path: str, own_tests: bool = True) -> Dataset:
    """Read FEMNIST, 28x28 handwritten letters and digits by writer, as LEAF's preprocessing writes it.

    Its natural clients are the writers, the id column ``user``.

    Parameters
    ----------
    path
        Folder with ``train`` and ``test``, each with JSON files; as given, or relative to ``$FEDSIM_DATA``.
    own_tests
        Whether clients are tested on their users' examples in ``test``, if all users in ``train`` have some there.

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
    return _read("femnist", path, (1, 28, 28), FEMNIST_CLASSES, own_tests=own_tests)


def leaf(
    *,
    path: str,
    shape: tuple[int, ...] = (),
    classes: tuple[str, ...] = (),
    length: int = 25,
    vocabulary: int = 10_000,
    own_tests: bool = True,
) -> Dataset:
    """Read any data set in LEAF's JSON format: vectors, images or texts by user.

    Its natural clients are the users, the id column ``user``; the server's test set is all users' test data.

    Parameters
    ----------
    path
        Folder with ``train`` and ``test``, each with JSON files; as given, or relative to ``$FEDSIM_DATA``.
    shape
        Shape of one input, such as [1, 28, 28] (default: as in the file): channels first, and in the order of the file.
    classes
        Names of the classes (default: the labels' numbers); those of the next character are the characters.
    length
        Number of words of a sentence that are kept, as in LEAF; shorter ones are padded in front.
    vocabulary
        Largest number of different words of sentences: the most frequent ones in training.
    own_tests
        Whether clients are tested on their users' examples in ``test``, if all users in ``train`` have some there, as
        where LEAF has split by sample; ``partition.test`` then does not apply. Else tests are drawn from ``train``.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or empty.
    ValueError
        If a file is damaged or not in LEAF's format, or its inputs do not have the shape.

    Notes
    -----
    A file holds ``users``, ``num_samples`` and ``user_data``, which maps a user to ``x`` and ``y``. LEAF's Shakespeare
    has strings of 80 characters as ``x`` and the next character as ``y``: one target per example. They overlap, so that
    tests drawn from ``train`` would hold characters that a client has trained on. Its Sent140 has as
    ``x`` a tweet's id, date, query, user and text, and as ``y`` its sentiment, 0 or 1; LEAF takes the vocabulary from
    pretrained embeddings and pads behind.

    References
    ----------
    Caldas et al. 2018, LEAF: a benchmark for federated settings, arXiv 1812.01097.
    """
    return _read("leaf", path, shape, classes, length, vocabulary, own_tests=own_tests)


@dataclass(frozen=True)
class _Part:
    """A split: the user of each example, and each user's inputs and targets, one block per user."""

    users: list[str]
    inputs: list[Any]
    targets: list[list]


def _read(
    name: str,
    path: str,
    shape: tuple[int, ...],
    classes: tuple[str, ...],
    length: int = 25,
    size: int = 10_000,
    *,
    own_tests: bool,
) -> Dataset:
    if any(length < 1 for length in shape):
        raise ValueError(f"shape = {list(shape)} must hold positive numbers, such as [1, 28, 28]")
    folder = user_path(path)
    parts = [_part(folder / split) for split in ("train", "test")]
    dataset = _dataset(name, parts, folder, shape, classes, length, size)
    dataset = replace(dataset, origins={"user": origin_names(dataset.ids["user"], parts[0].users)})
    return _with_own_tests(dataset, parts) if own_tests else dataset


def _with_own_tests(dataset: Dataset, parts: list[_Part]) -> Dataset:
    """Return a data set whose users are tested on their own test examples, if all have some."""
    users, tested = (part.users for part in parts)
    trained = set(users)
    is_alike = dataset.test.inputs.shape[1:] == dataset.shape  # else it is refused, as a whole
    if not is_alike or not trained <= set(tested):  # as where LEAF has split by user
        return dataset
    own = torch.tensor([place for place, user in enumerate(tested) if user in trained])
    tests = dataset.test[own]
    inputs, targets = dataset.train.inputs, dataset.train.targets
    train = Examples(torch.cat([inputs, tests.inputs]), torch.cat([targets, tests.targets]))
    ids = {"user": numbered([*users, *(tested[place] for place in own.tolist())])}
    return replace(dataset, train=train, ids=ids, held_out=np.arange(len(train)) >= len(users))


def _dataset(
    name: str,
    parts: list[_Part],
    folder: Path,
    shape: tuple[int, ...],
    classes: tuple[str, ...],
    length: int,
    size: int,
) -> Dataset:
    is_text = isinstance(parts[0].inputs[0], list)
    if is_text and isinstance(parts[0].targets[0][0], str):
        return _text(name, *parts)
    read: tuple[str, ...] = ()
    if is_text:
        read = word_vocabulary(list(chain(*parts[0].inputs)), size)
        train, test = (_sentences(part, read, length, folder) for part in parts)
    else:
        train, test = (_numbers(part, shape, folder) for part in parts)
    names = classes or tuple(str(label) for label in range(max(int(p.targets.max()) for p in (train, test)) + 1))
    users = {"user": numbered(parts[0].users)}
    if is_text:
        return Dataset(name, train, test, names, ids=users, vocabulary=read)
    mean, std = channel_statistics(train.inputs, 1.0)
    return Dataset(name, train, test, names, 1.0, mean, std, users, fitted=(mean, std))


def _part(folder: Path) -> _Part:
    """Read the JSON files of a split; numbers become arrays user by user, as Python lists take ten times the memory."""
    if not (paths := sorted(folder.glob("*.json"))):
        raise FileNotFoundError(f"{folder} has no JSON file; LEAF's preprocessing writes train/*.json and test/*.json")
    samplings = {match[0]: path.name for path in paths if (match := SAMPLING.search(path.stem))}
    if len(samplings) > 1:
        raise ValueError(
            f"{folder} has files of {len(samplings)} samplings, such as {' and '.join(list(samplings.values())[:2])}, "
            "whose examples would count twice; leave those of one"
        )
    part = _Part([], [], [])
    found: dict[int, list[str]] = {}
    for path in paths:
        try:
            content = json.loads(read_text(path))
            if len(set(content["users"])) < len(content["users"]):
                raise ValueError("it lists a user twice")
            for user in content["users"]:
                own = content["user_data"][str(user)]  # JSON has no other keys
                x, y = own["x"], _whole(own["y"])
                if len(x) != len(y):
                    raise ValueError(f"user {user!r} has {len(x)} inputs and {len(y)} targets")
                if len(x):
                    part.users.extend([str(user)] * len(x))
                    part.inputs.append(block := _block(user, x, y))
                    part.targets.append(y)
                    examples = hash((user, tuple(block) if isinstance(block, list) else block.tobytes(), *y))
                    found.setdefault(examples, []).append(f"{user!r} of {path.name}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else message_of(error)
            raise ValueError(
                f"{path} is damaged or not in LEAF's format ({reason}); download or write it again"
            ) from error
    if twice := next((places for places in found.values() if len(places) > 1), None):
        raise ValueError(f"{folder} has the same examples twice, of user {' and '.join(twice[:2])}; remove one")
    if not part.users:
        raise ValueError(f"the files of {folder} hold no example; check LEAF's preprocessing")
    return part


def _block(user: str, x: list, y: list) -> Any:
    """Return a user's inputs: strings unchanged, tweets as their text, numbers as an array [n, ...]."""
    if all(isinstance(text, str) for text in x) and all(isinstance(character, str) for character in y):
        return x
    if not all(type(label) is int and 0 <= label < LARGEST for label in y):
        raise ValueError(f"targets of user {user!r} must be whole numbers from 0 to {LARGEST - 1}, class indices")
    if all(_is_tweet(row) for row in x):
        return [row[TEXT] for row in x]
    try:
        if any(isinstance(row, str | list) and any(isinstance(each, str) for each in row) for row in x):
            raise TypeError("some are texts")
        block = np.array(x, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"inputs of user {user!r} must be numbers, in the same shape for every example") from error
    if block.ndim < 2 or not block.size:
        raise ValueError(f"inputs of user {user!r} have shape {block.shape[1:]}; each must be a list of numbers")
    return block


def _whole(labels: list) -> list:
    """Return labels with whole numbers as such, also where they are written as 3.0."""
    return [int(label) if type(label) is float and label.is_integer() else label for label in labels]


def _is_tweet(row: Any) -> bool:
    return isinstance(row, list) and len(row) in TWEET and all(isinstance(each, str) for each in row)


def _sentences(part: _Part, names: tuple[str, ...], length: int, folder: Path) -> Examples:
    targets = list(chain(*part.targets))
    if not all(isinstance(block, list) for block in part.inputs) or not all(type(label) is int for label in targets):
        raise ValueError(f"{folder}: some inputs or targets are texts and others are not; make all of them alike")
    return Examples(word_tokens(list(chain(*part.inputs)), names, length), torch.tensor(targets, dtype=torch.int64))


def _numbers(part: _Part, shape: tuple[int, ...], folder: Path) -> Examples:
    shapes = sorted({block.shape[1:] for block in part.inputs if not isinstance(block, list)})
    if len(shapes) > 1 or any(isinstance(block, list) for block in part.inputs):
        raise ValueError(f"{folder}: inputs have different types or shapes ({shapes[:3]}); they must be the same")
    if shape and math.prod(shape) != math.prod(shapes[0]):
        raise ValueError(
            f"{folder}: inputs of {math.prod(shapes[0])} numbers cannot have shape = {list(shape)}; use data.name = "
            "'leaf' with the right shape"
        )
    wide, found = ([each for each in extents if each > 1] for extents in (shape, shapes[0]))
    if wide != found and sorted(wide) == sorted(found):
        raise ValueError(
            f"{folder}: inputs have shape {list(shapes[0])}, which shape = {list(shape)} would not turn but mix up; "
            "write the files with that shape"
        )
    inputs = torch.from_numpy(np.concatenate(part.inputs)).reshape(len(part.users), *(shape or shapes[0]))
    if looks_channels_last(inputs):
        raise ValueError(
            f"{folder}: inputs have shape {list(inputs.shape[1:])}, as if channels came last; write them as [channels, "
            "height, width], or, of one channel, set [data] shape = [1, height, width]"
        )
    return Examples(inputs, torch.tensor(list(chain(*part.targets)), dtype=torch.int64))


def _text(name: str, train: _Part, test: _Part) -> Dataset:
    parts = [(list(chain(*part.inputs)), list(chain(*part.targets))) for part in (train, test)]
    every = [text for texts, characters in parts for text in (*texts, *characters)]
    if not all(isinstance(text, str) for text in every):
        raise ValueError("some inputs or targets are texts and others are not; make all of them texts, or none")
    lengths = {len(text) for texts, _ in parts for text in texts}
    if len(lengths) > 1 or any(len(character) != 1 for _, characters in parts for character in characters):
        raise ValueError(
            f"texts have lengths {sorted(lengths)[:5]}; all must have the same length, and each target one character"
        )
    classes = vocabulary(every)
    index = {character: position for position, character in enumerate(classes)}
    examples = [
        Examples(
            torch.from_numpy(tokens("".join(texts), index).reshape(len(texts), -1)),
            torch.from_numpy(tokens("".join(characters), index)),
        )
        for texts, characters in parts
    ]
    return Dataset(name, examples[0], examples[1], classes, ids={"user": numbered(train.users)})
