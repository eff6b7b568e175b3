"""Metrics of a model's outputs on all examples at once, by torchmetrics; import it only where some are asked for.

None of these is a mean over batches. Where a metric is not defined, as AUROC is not for examples of one class, it is
NaN; means over classes are over those that the targets have, and that of F1 also over those that are predicted.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_calibration_error,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_recall,
    multilabel_accuracy,
    multilabel_f1_score,
)
from torchmetrics.functional.regression import r2_score
from torchmetrics.functional.text import perplexity

from fedsim.training.metrics import BY_CLASS, MAIN
from fedsim.training.targets import IGNORED

BINS = 15  # of confidence, for the calibration error


def scores(
    names: Iterable[str], task: str, outputs: Tensor, targets: Tensor, classes: Sequence[str]
) -> dict[str, float]:
    """Return metrics by name; accuracy by class has a name for each class that the targets have.

    Parameters
    ----------
    names
        Names in `fedsim.training.metrics.METRICS`, of metrics that the task has.
    task
        Name in `fedsim.training.tasks.TASKS`.
    outputs, targets
        Of all examples, on the CPU, as the task's loss takes them.
    classes
        Names of the classes, or of the labels.
    """
    outputs = outputs.double()
    computed: dict[str, float] = {}
    for name in names:
        if name == BY_CLASS:
            computed |= _by_class(task, outputs, targets, classes)
        elif not bool(outputs.isfinite().all()):
            computed[name] = math.nan
        else:
            computed[name] = float(_SCORES[task][name](outputs, targets))
    return computed


def _per_target(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, shape [targets, classes], and classes of all targets that count."""
    if targets.ndim > 1:
        outputs, targets = outputs.movedim(1, -1).flatten(0, -2), targets.flatten()
    real = targets != IGNORED
    return outputs[real], targets[real]


def _yes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return outputs.flatten(), targets.flatten().long()


def _two(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return a yes or no as logits of two classes."""
    logits, labels = _yes(outputs, targets)
    return torch.stack([torch.zeros_like(logits), logits], 1), labels


def _recalls(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the recall of each class, NaN of one that the targets do not have."""
    classes = logits.shape[1]
    recalls = multiclass_recall(logits.argmax(1), labels, classes, average="none")
    return recalls.where(labels.bincount(minlength=classes) > 0, torch.nan)


def _balanced_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return _recalls(logits, labels).nanmean()


def _macro_f1(logits: Tensor, labels: Tensor) -> Tensor:
    return multiclass_f1_score(logits.argmax(1), labels, logits.shape[1], average="macro")


def _macro_f1_of_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean F1 of labels that an example has or is given; torchmetrics counts all others as 0."""
    given = (outputs > 0).long()
    each = multilabel_f1_score(given, targets.long(), targets.shape[1], average="none")
    return each[(targets > 0).any(0) | given.bool().any(0)].mean()


def _mean_auroc(shares: Tensor, is_class: Tensor) -> Tensor:
    """Return the mean AUROC of columns, [n, columns], each against all else; of those that have both."""
    found = [
        binary_auroc(share, own.long())
        for share, own in zip(shares.unbind(1), is_class.unbind(1), strict=True)
        if 0 < int(own.sum()) < len(own)
    ]
    return torch.stack(found).double().mean() if found else torch.tensor(torch.nan)


def _auroc(logits: Tensor, labels: Tensor) -> Tensor:
    return _mean_auroc(logits.softmax(1), torch.nn.functional.one_hot(labels, logits.shape[1]).bool())


def _calibration_error(logits: Tensor, labels: Tensor) -> Tensor:
    return multiclass_calibration_error(logits.softmax(1), labels, logits.shape[1], n_bins=BINS)


def _binary_calibration_error(outputs: Tensor, targets: Tensor) -> Tensor:
    logits, labels = _yes(outputs, targets)
    return binary_calibration_error(logits.sigmoid(), labels, n_bins=BINS)


def _perplexity(logits: Tensor, labels: Tensor) -> Tensor:
    return perplexity(logits[None], labels[None])


def _r2(outputs: Tensor, targets: Tensor) -> Tensor:
    targets = targets.double().reshape(len(targets), -1)
    if len(targets) < 2 or bool((targets == targets[0]).all(0).any()):
        return torch.tensor(torch.nan)
    return r2_score(outputs.reshape(targets.shape), targets)


def _by_class(task: str, outputs: Tensor, targets: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Return the accuracy of each class among its own targets, and of each label among all examples."""
    if task == "multi-label":
        found = multilabel_accuracy((outputs > 0).long(), targets.long(), len(classes), average="none")
    else:
        found = _recalls(*(_two if task == "binary" else _per_target)(outputs, targets))
    is_finite = bool(outputs.isfinite().all())
    values = zip(classes, found.tolist(), strict=False)  # outputs beyond the classes are no target
    return {f"{MAIN}:{name}": value if is_finite else math.nan for name, value in values if not math.isnan(value)}


Score = Callable[[Tensor, Tensor], Tensor]


def _after(prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], score: Score) -> Score:
    return lambda outputs, targets: score(*prepare(outputs, targets))


_CLASSES: dict[str, Score] = {
    "balanced-accuracy": _after(_per_target, _balanced_accuracy),
    "macro-f1": _after(_per_target, _macro_f1),
    "auroc": _after(_per_target, _auroc),
    "calibration-error": _after(_per_target, _calibration_error),
}
_SCORES: dict[str, dict[str, Score]] = {
    "classification": _CLASSES,
    "next-token": {**_CLASSES, "perplexity": _after(_per_target, _perplexity)},
    "binary": {
        "balanced-accuracy": _after(_two, _balanced_accuracy),
        "macro-f1": _after(_two, _macro_f1),
        "auroc": _after(_two, lambda logits, labels: _mean_auroc(logits[:, 1:].sigmoid(), labels[:, None] > 0)),
        "calibration-error": _binary_calibration_error,
    },
    "multi-label": {
        "macro-f1": _macro_f1_of_labels,
        "auroc": lambda outputs, targets: _mean_auroc(outputs.sigmoid(), targets > 0),
    },
    "regression": {"r2": _r2},
}
