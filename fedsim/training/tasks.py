"""What a model learns: the kinds of targets, the losses that fit them, and the metric that each is judged by.

Nothing here imports torch, so that settings are checked and results are read without it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedsim.lazy import LazyTable

TaskName = Literal["classification", "next-token", "binary", "multi-label", "regression"]


@dataclass(frozen=True)
class Task:
    """A kind of targets.

    Parameters
    ----------
    losses
        Names of the losses that fit it, the default first.
    main
        Name of the metric that reports show and that selects models. It follows from the mean error of
        `fedsim.training.evaluation.Evaluation`.
    targets
        What the targets must be, in words.
    has_classes
        Whether each target is one of several classes.
    of_indices
        Whether targets are indices, and not real numbers.
    """

    name: TaskName
    losses: Sequence[str]
    main: str
    targets: str
    has_classes: bool = False
    of_indices: bool = False

    def main_value(self, error: float) -> float:
        """Return the main metric for a mean error: 1 minus it, or the root of a mean squared error."""
        return math.sqrt(error) if self.main == "rmse" else 1.0 - error


_BINARY = ("binary-cross-entropy",)
TASKS: dict[str, Task] = {
    each.name: each
    for each in (
        Task(
            "classification", ("cross-entropy",), "accuracy", "class indices as int64, [n] or [n, length]", True, True
        ),
        Task("next-token", ("cross-entropy",), "accuracy", "tokens as int64, [n] or [n, length]", True, True),
        Task("binary", _BINARY, "accuracy", "0 and 1 as float32, [n] or [n, 1]", True),
        Task("multi-label", _BINARY, "accuracy", "0 and 1 as float32, [n, labels]"),
        Task("regression", ("mse", "huber"), "rmse", "numbers as float32, [n] or [n, outputs]"),
    )
}
LOSSES: LazyTable[Callable[..., Any]] = LazyTable(
    {
        "auto": "fedsim.training.losses:auto",
        "cross-entropy": "fedsim.training.losses:cross_entropy",
        "binary-cross-entropy": "fedsim.training.losses:binary_cross_entropy",
        "mse": "fedsim.training.losses:mse",
        "huber": "fedsim.training.losses:huber",
    }
)
OWN_METRICS: LazyTable[Callable[..., Any]] = LazyTable({"none": "fedsim.training.metrics:none"})
OPTIMIZERS: LazyTable[Callable[..., Any]] = LazyTable({"local": "fedsim.training.own_optimizer:local"})
