"""What is wrong with a data set is named before anything is trained, with what to give instead."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.data import Dataset, Examples, check_dataset

N = 12
FEATURES = torch.rand(N, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N) % 3
ONE_HOT = torch.nn.functional.one_hot(LABELS, 3)
WORDS = torch.arange(N * 4).reshape(N, 4) % 9
TAGS = WORDS % 3
IMAGES = torch.zeros(N, 8, 8, 3, dtype=torch.uint8)
GOOD = Dataset("mine", Examples(FEATURES, LABELS), Examples(FEATURES, LABELS), ("a", "b", "c"))


def changed(values: Tensor, place: Any, value: float) -> Tensor:
    values = values.clone()
    values[place] = value
    return values


def both(inputs: Any, targets: Any, **changes: Any) -> dict[str, Any]:
    return {"train": Examples(inputs, targets), "test": Examples(inputs, targets), **changes}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "one-hot": (
        both(FEATURES, ONE_HOT),
        r"they are one-hot of shape \[n, 3\]; give class indices: targets.argmax\(1\)",
    ),
    "one-hot floats": (both(FEATURES, ONE_HOT.double()), r"one-hot of shape \[n, 3\].*targets.argmax\(1\)"),
    "one-hot bools": (both(FEATURES, ONE_HOT.bool()), r"one-hot of shape \[n, 3\].*targets.argmax\(1\)"),
    "several labels as bools": (
        both(FEATURES, (ONE_HOT + ONE_HOT.roll(1, 1)).bool()),
        "several labels at once; declare task = 'multi-label'",
    ),
    "too few names of labels": (
        both(FEATURES, (ONE_HOT + ONE_HOT.roll(1, 1)).float(), classes=("a", "b")),
        "2 names of labels; give one for each column",
    ),
    "a column": (both(FEATURES, LABELS[:, None]), r"give class indices of shape \[12\]: targets.squeeze\(1\)"),
    "a column of bytes": (both(FEATURES, LABELS[:, None].byte()), r"targets.squeeze\(1\).long\(\)"),
    "one class": (
        both(FEATURES, LABELS * 0, classes=("a",)),
        "has classes = .*; there must be at least two; for a yes",
    ),
    "numbers as classes": (
        both(FEATURES, FEATURES[:, 0], task="classification"),
        "do not fit the task 'classification'; give class indices as int64",
    ),
    "numbers as a yes or no": (
        both(FEATURES, FEATURES[:, 0], task="binary"),
        r"do not fit the task 'binary'; give 0 and 1 as float32, \[n\] or \[n, 1\]",
    ),
    "a column of several labels": (both(FEATURES, FEATURES[:, :1].round(), task="multi-label"), "do not fit the task"),
    "an unknown task": (both(FEATURES, FEATURES[:, 0], task="ranking"), "task = 'ranking'; it must be one of"),
    "numbers that are not finite": (
        both(FEATURES, changed(FEATURES[:, 0], 5, torch.nan), task="regression"),
        "not finite, first at example 5",
    ),
    "maps of numbers": (both(FEATURES, torch.rand(N, 2, 2)), "do not fit the task 'regression'"),
    "whole floats": (both(FEATURES, LABELS.float()), r"targets of torch.float32, shape \(12,\); .*targets.long\(\)"),
    "bools": (both(FEATURES, LABELS > 0), r"targets of torch.bool.*targets.long\(\)"),
    "bytes": (both(FEATURES, LABELS.byte()), r"targets of torch.uint8.*targets.long\(\)"),
    "int32": (both(FEATURES, LABELS.int()), r"targets of torch.int32.*targets.long\(\)"),
    "NumPy targets": (both(FEATURES, LABELS.numpy()), r"targets of type ndarray; .* as by torch.from_numpy\(targets\)"),
    "NumPy inputs": (both(FEATURES.numpy(), LABELS), r"inputs of type ndarray; .*torch.from_numpy\(inputs\)"),
    "lists": (both(FEATURES, LABELS.tolist()), r"targets of type list; give .* as by torch.tensor\(targets\)"),
    "NaN targets": (both(FEATURES, changed(LABELS.float(), 4, torch.nan)), "not finite, first at example 4"),
    "NaN inputs": (both(changed(FEATURES, (7, 2), torch.nan), LABELS), "not finite, first at example 7"),
    "infinite inputs": (both(changed(FEATURES, (3, 0), torch.inf), LABELS), "not finite, first at example 3"),
    "a negative label": (both(FEATURES, changed(LABELS, 9, -1)), r"label -1; .*\(example 9\); -100 marks a target"),
    "labels from 1": (both(FEATURES, LABELS + 1), "label 3; labels must be from 0 to 2 .*from 1 to 3, subtract 1"),
    "labels with gaps": (both(FEATURES, LABELS * 2), "label 4; .* number them without gaps, as fedsim.data.numbered"),
    "part of a graph": (both(FEATURES.clone().requires_grad_(), LABELS), r"require a gradient; give inputs.detach\(\)"),
    "sparse": (both(FEATURES.to_sparse(), LABELS), r"inputs that are not dense; give inputs.to_dense\(\)"),
    "elsewhere": (both(FEATURES.to("meta"), LABELS), r"on another device than the CPU; give inputs.cpu\(\)"),
    "no dict of ids": ({"ids": None}, "ids = None; give a dict"),
    "only ignored": (both(FEATURES, changed(LABELS, 5, -100)), "no target at example 5, where all are -100; remove"),
    "maps of labels": (both(FEATURES, LABELS.view(N, 1, 1).expand(N, 2, 2)), r"in one row: targets.flatten\(1\)"),
    "no test": ({"test": Examples(FEATURES[:0], LABELS[:0])}, "test set has 0 inputs"),
    "unequal numbers": (both(FEATURES, LABELS[1:]), "12 inputs and 11 targets"),
    "no examples": ({"train": (FEATURES, LABELS)}, r"is a tuple; give fedsim.data.Examples\(inputs, targets\)"),
    "bytes, channels last": (both(IMAGES, LABELS), r"channels came last; .*inputs.permute\(0, 3, 1, 2\)"),
    "floats, channels last": (both(IMAGES.float(), LABELS), "channels came last"),
    "single numbers": (both(FEATURES[:, 0], LABELS), r"give \(12, 1\): inputs.unsqueeze\(1\)"),
    "int32 tokens": (
        both(WORDS.int(), LABELS),
        "inputs of torch.int32; give tokens as int64, images as uint8 or floats",
    ),
    "a table of integers": (both(WORDS - 2, LABELS), "tokens from -2 to 6; .*give a table of numbers as floats"),
    "no vocabulary": (
        both(WORDS, LABELS),
        "tokens from 0 to 8; they must be from 0 to 2, as without a vocabulary it is",
    ),
    "a small vocabulary": (
        both(WORDS, LABELS, vocabulary=tuple("abcd")),
        "tokens from 0 to 8; .* from 0 to 3; integers",
    ),
    "normalised tokens": (
        both(WORDS, LABELS, vocabulary=tuple("abcdefghi"), mean=(0.0,), std=(1.0,)),
        "has a mean of tokens",
    ),
    "other types in test": (
        {"test": Examples(WORDS.new_zeros(N, 5), LABELS)},
        "inputs of torch.int64, not torch.float32",
    ),
    "constant channel": (
        {"mean": (0.0,) * 5, "std": (1.0, 0.0, 1.0, 1.0, 1.0)},
        "std = 0.0 in channel 1; .*1 for a constant",
    ),
    "NaN deviation": ({"mean": (0.0,), "std": (float("nan"),)}, "std = nan in channel 0"),
    "arrays of means": (
        {"mean": np.zeros(5), "std": np.ones(5)},
        r"mean = array.*; give a tuple with a number for each",
    ),
    "one mean": ({"mean": 0.5, "std": 0.5}, "mean = 0.5; give a tuple"),
    "no scale": ({"scale": 0.0}, "scale = 0.0; they must be finite, and scale more than 0"),
    "number of classes": (
        {"classes": 3},
        r"classes = 3; give a tuple of names, such as tuple\(map\(str, range\(3\)\)\)",
    ),
    "number of tokens": ({"vocabulary": 200}, "vocabulary = 200; give a tuple of names"),
    "no dict of origins": ({"origins": None}, "origins = None; give a dict"),
    "origins without ids": ({"origins": {"site": ("a",)}}, "origins 'site' without ids of this name"),
    "origins in a text": ({"ids": {"site": LABELS.numpy()}, "origins": {"site": "abc"}}, "'site' = 'abc'; give a dict"),
    "an origin without a name": (
        {"ids": {"site": LABELS.numpy()}, "origins": {"site": ("a", "b")}},
        "has 2 origins 'site', and an id is 2; name every id, from 0",
    ),
    "ids in a list": ({"ids": {"site": [0] * N}}, "ids 'site' of type list; give a NumPy array of integers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_what_to_give(case: str) -> None:
    changes, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as caught:
        check_dataset(replace(GOOD, **changes))
    assert "\n" not in str(caught.value)


RIGHT: dict[str, dict[str, Any]] = {
    "sentences": both(WORDS, LABELS, vocabulary=tuple("abcdefghi")),
    "tags of words": both(WORDS, TAGS, vocabulary=tuple("abcdefghi")),
    "tags that look one-hot": both(WORDS[:, :3], ONE_HOT, vocabulary=tuple("abcdefghi")),
    "padded": both(TAGS, changed(TAGS, (slice(None), slice(2, None)), -100)),
    "the next of one token": both(TAGS[:, :1], TAGS[:, 1:2]),
    "doubles": both(FEATURES.double(), LABELS),
    "halves": both(FEATURES.half(), LABELS),
    "bytes without statistics": both(IMAGES.permute(0, 3, 1, 2), LABELS, scale=255.0),
    "lists of statistics": {"mean": [0.0] * 5, "std": [1] * 5},
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_is_taken_and_reaches_the_model_as_float32_or_tokens(case: str) -> None:
    data = replace(GOOD, **RIGHT[case])
    check_dataset(data)
    seen = data.normalise(data.train.inputs)
    assert seen.dtype == (torch.int64 if data.tokens else torch.float32)
    assert seen.shape == data.train.inputs.shape


def test_bytes_without_a_mean_are_divided_by_their_scale() -> None:
    inputs = torch.full((2, 1, 2, 2), 255, dtype=torch.uint8)
    data = replace(GOOD, **both(inputs, LABELS[:2], scale=255.0))
    assert data.normalise(inputs).unique().tolist() == [1.0]


def test_the_label_of_a_padded_sequence_is_its_last_target_that_counts() -> None:
    targets = torch.tensor([[1, 2, -100], [2, -100, -100], [-100, 0, 1]])
    assert Examples(targets, targets).labels.tolist() == [2, 2, 1]
