"""What is to be learnt from a data set: declared, or told from the type and shape of its targets."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Dataset, Examples
from fedsim.training.targets import IGNORED
from fedsim.training.tasks import TASKS, Task

HISTOGRAM_BINS = 10
SHOWN_DIGITS = 4


def task_of(dataset: Dataset) -> Task:
    """Return the task of a data set: the one that it declares, or the one that its targets are of.

    Whole numbers are classes, or, where inputs are tokens and classes too, the next token. Real numbers are a yes or no
    for each example if all are 0 and 1, several labels if there is more than one column of these, and else numbers to
    predict.

    Raises
    ------
    ValueError
        If there is no such task, or the targets leave it open.
    """
    if dataset.task != "auto":
        if dataset.task not in TASKS:
            raise ValueError(f"{dataset.name!r} has task = {dataset.task!r}; it must be one of {', '.join(TASKS)}")
        return TASKS[dataset.task]
    targets = dataset.train.targets
    if not targets.is_floating_point():
        return TASKS["next-token" if dataset.tokens and not dataset.vocabulary else "classification"]
    several = targets.ndim == 2 and targets.shape[1] > 1
    if are_binary(targets):
        return TASKS["multi-label" if several else "binary"]
    if bool((targets == targets.round()).all()):
        where = f"{dataset.name!r} has targets of {targets.dtype}, shape {tuple(targets.shape)}"
        raise ValueError(
            f"{where}, all whole numbers; give class indices as int64: targets.long(), or declare task = 'regression'"
        )
    return TASKS["regression"]


def are_binary(targets: Tensor) -> bool:
    """Tell whether targets are zeros and ones, some of each."""
    values = targets.unique()
    return bool(((values == 0) | (values == 1)).all()) and len(values) == 2


def with_task(dataset: Dataset, declared: str = "auto") -> Dataset:
    """Return a data set with its task, and its targets in the type that the task needs if their values fit.

    Parameters
    ----------
    declared
        Task that replaces the data set's own.

    Raises
    ------
    ValueError
        As `task_of` does.
    """
    dataset = dataset if declared == "auto" else replace(dataset, task=declared)
    if not all(isinstance(examples.targets, Tensor) for examples in (dataset.train, dataset.test)):
        return dataset  # which the checks refuse
    task = task_of(dataset)
    train, test = (_cast(examples, task) for examples in (dataset.train, dataset.test))
    classes = dataset.classes
    if not classes and task.name == "binary":
        classes = ("0", "1")
    elif not classes and task.name == "multi-label" and train.targets.ndim == 2:
        classes = tuple(map(str, range(train.targets.shape[1])))
    return replace(dataset, train=train, test=test, classes=classes, task=task.name)


def _cast(examples: Examples, task: Task) -> Examples:
    targets = examples.targets
    if task.of_indices:
        is_whole = targets.dtype == torch.bool or (
            targets.is_floating_point() and bool((targets == targets.round()).all())
        )
        return replace(examples, targets=targets.long()) if is_whole else examples
    if targets.is_complex() or targets.dtype == torch.float32:
        return examples
    return replace(examples, targets=targets.float())


def label_shares(dataset: Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return what clients are compared by, and its names: the classes of all targets, labels, or ranges of a number.

    Returns
    -------
    labels
        Indices of the names, shape [n, ...]; -100 where there is none.
    names
        Classes; for regression, ranges between quantiles of the target, of which each has about as many examples.
    """
    targets, task = dataset.train.targets.cpu(), task_of(dataset).name
    if task == "regression":
        labels, edges = quantile_bins(dataset, HISTOGRAM_BINS)
        ends = [f"{edge:.{SHOWN_DIGITS}g}" for edge in edges]
        if not ends:
            return labels, ("all",)
        between = [f"{low} to {high}" for low, high in pairwise(ends)]
        return labels, (f"up to {ends[0]}", *between, f"over {ends[-1]}")
    if task == "multi-label":
        places = torch.arange(targets.shape[1]).expand_as(targets)
        return torch.where(targets > 0, places, IGNORED).numpy(), dataset.classes
    return (targets.long().reshape(len(targets)) if task == "binary" else targets).numpy(), dataset.classes


def quantile_bins(dataset: Dataset, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the quantile range of each training target, from 0, and the distinct ends between ranges.

    Of several numbers per example, the first counts.
    """
    targets = dataset.train.targets.cpu()
    values = targets.reshape(len(targets), -1)[:, 0].double().numpy()
    edges = np.unique(np.quantile(values, np.arange(1, bins) / bins))
    edges = edges[edges < values.max()]
    return np.searchsorted(edges, values, side="left").astype(np.int64), edges
