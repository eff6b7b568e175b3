"""Checks of targets: what is no class index is named with what to give instead."""

import torch
from torch import Tensor

from fedsim.training.targets import IGNORED, labels_of, real_targets


def check_target_kind(
    described: str,
    targets: Tensor,
    inputs: Tensor,
    classes: int | None = None,
    *,
    cast: str = "long()",
    task: str = "auto",
) -> None:
    """Check that targets are class indices, one for each example or for each position of a sequence, or numbers.

    Parameters
    ----------
    described
        Name, type and shape of the targets, with which the message begins.
    classes
        Number of classes, where it is known without the targets.
    cast
        Method by which the user's array becomes int64.
    task
        What the targets are declared to be, if they are.

    Raises
    ------
    ValueError
        If they are one-hot, class indices of another type or for several classes at once, not finite, or have a wrong
        shape.
    """
    if targets.is_floating_point() and not bool((finite := torch.isfinite(targets)).all()):
        raise ValueError(
            f"{described}: they are not finite, first at example {first_with(~finite)}; remove or fill them"
        )
    if targets.is_floating_point() and task not in ("auto", "classification", "next-token"):
        return
    shape, is_whole = tuple(targets.shape), not targets.is_floating_point()
    follows_tokens = inputs.dtype == torch.int64 and targets.shape == inputs.shape
    is_column = targets.ndim == 2 and shape[1] == 1 and not follows_tokens
    is_binary, are_whole = _holds_only_zeros_and_ones(targets), is_whole or bool((targets == targets.round()).all())
    if is_column and are_whole and (is_whole or not is_binary):
        long = "" if targets.dtype == torch.int64 else f".{cast}"
        raise ValueError(f"{described}; give class indices of shape [{shape[0]}]: targets.squeeze(1){long}")
    if targets.ndim == 2 and not is_column and not follows_tokens and is_binary:
        # Whole numbers may also be tags of a sequence, unless there are as many as classes.
        is_row_of_classes = targets.dtype == torch.bool or not is_whole or classes in (None, shape[1])
        if is_row_of_classes and bool((targets.sum(1) == 1).all()):
            raise ValueError(
                f"{described}: they are one-hot of shape [n, {shape[1]}]; give class indices: targets.argmax(1), or "
                "declare task = 'multi-label'"
            )
        if targets.dtype == torch.bool:
            raise ValueError(f"{described}: they are several labels at once; declare task = 'multi-label'")
    if not is_whole:
        if are_whole and not (is_binary and bool(targets.any())):
            raise ValueError(
                f"{described}; as whole numbers, give class indices as int64: targets.{cast}, or declare task = "
                "'regression'"
            )
        if task != "auto":
            raise ValueError(f"{described}, which do not fit the task {task!r}; give class indices as int64")
        return
    if targets.ndim > 2 and targets.numel() and not targets.is_complex():
        raise ValueError(
            f"{described}; give class indices of maps, as in segmentation, in one row: targets.flatten(1), with a "
            "model that returns outputs.flatten(2)"
        )
    if targets.is_complex() or targets.ndim not in (1, 2) or not targets.numel():
        raise ValueError(f"{described}; give class indices as int64, of shape [n], or [n, length] for sequences")


def check_labels(where: str, targets: Tensor, classes: int) -> None:
    """Check that every target is the index of a class or ignored, and none of an example's targets all are.

    Raises
    ------
    ValueError
        If not; the message names the first such example.
    """
    real = real_targets(targets)
    if real is not None and bool((is_bare := ~real.reshape(len(targets), -1).any(1)).any()):
        bare = first_with(is_bare)
        raise ValueError(f"{where} has no target at example {bare}, where all are {IGNORED}; remove the example")
    labels = labels_of(targets)
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and high < classes:
        return
    wrong = low if low < 0 else high
    place = first_with(targets == wrong)
    hint = f"; {IGNORED} marks a target to ignore" if low < 0 else ""
    if low == 1 and high == classes:
        hint = f"; as they are from 1 to {classes}, subtract 1"
    elif low >= 0 and len(labels.unique()) <= classes:
        hint = "; number them without gaps, as fedsim.data.numbered does"
    raise ValueError(f"{where} has the label {wrong}; labels must be from 0 to {classes - 1} (example {place}){hint}")


def first_with(marks: Tensor) -> int:
    """Return the position of the first example with a mark, shape [n, ...]."""
    return int(marks.reshape(len(marks), -1).any(1).nonzero()[0])


def _holds_only_zeros_and_ones(targets: Tensor) -> bool:
    return bool(((targets == 0) | (targets == 1)).all())
