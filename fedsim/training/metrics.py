"""All metrics of models, in one table: what each is called, for which tasks it is defined, and which way is better.

Nothing here imports torch; `fedsim.training.scores` computes them. One of the user's own is called ``own:NAME``, or
``own:NAME:lower`` if less is better, so that records say all that there is to know of it.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedsim.training.tasks import TASKS

Unit = Literal["share", "number", "nats"]
LOSS, MAIN, BY_CLASS = "loss", "accuracy", "accuracy-by-class"


@dataclass(frozen=True)
class Metric:
    """A metric of a model's outputs.

    Parameters
    ----------
    tasks
        Names of the tasks that it is defined for.
    higher_is_better
        Whether a larger value is the better one.
    unit
        Whether it is a ``share`` between 0 and 1, which is written in percent, a ``number`` in the unit of the targets
        or without one, or in ``nats`` per example.
    """

    name: str
    tasks: tuple[str, ...]
    higher_is_better: bool = True
    unit: Unit = "share"


_CLASSES = ("classification", "next-token", "binary")
_LABELS = (*_CLASSES, "multi-label")
METRICS: dict[str, Metric] = {
    each.name: each
    for each in (
        Metric(LOSS, tuple(TASKS), higher_is_better=False, unit="nats"),
        Metric(MAIN, _LABELS),
        Metric("rmse", ("regression",), higher_is_better=False, unit="number"),
        Metric("balanced-accuracy", _CLASSES),
        Metric("macro-f1", _LABELS),
        Metric("auroc", _LABELS),
        Metric("calibration-error", _CLASSES, higher_is_better=False),
        Metric("perplexity", ("next-token",), higher_is_better=False, unit="number"),
        Metric("r2", ("regression",), unit="number"),
        Metric(BY_CLASS, _LABELS),
    )
}
MAINS = (LOSS, *dict.fromkeys(task.main for task in TASKS.values()))  # which are measured always, if the task has them
SELECTING = tuple(name for name in METRICS if name != BY_CLASS)
OWN, LOWER = "own:", ":lower"
KNOWN = f"{', '.join(SELECTING)}, {MAIN}:CLASS, or {OWN}NAME, your own"  # in messages
OWN_NAME = re.compile(rf"{OWN}[\w-]+({LOWER})?")


def none(outputs: Any, targets: Any) -> dict[str, float]:
    """Measure nothing besides the metrics of ``[evaluation]``."""
    return {}


def metric_of(name: str) -> Metric:
    """Return the metric of a name in the records; that of one class is the metric of all, such as ``accuracy:cat``."""
    if OWN_NAME.fullmatch(name):
        return Metric(name, tuple(TASKS), higher_is_better=not name.endswith(LOWER), unit="number")
    return METRICS[BY_CLASS if name.startswith(f"{MAIN}:") else name]


def is_selecting(name: str) -> bool:
    """Return whether a metric of that name can select models: any but the accuracy of a class."""
    return name in SELECTING or bool(OWN_NAME.fullmatch(name))


def is_metric(name: str) -> bool:
    """Return whether a value of that name can be in the records."""
    return is_selecting(name) or name.startswith(f"{MAIN}:")


def meant(name: str, measured: Iterable[str]) -> str:
    """Return the metric that is meant: ``accuracy`` is the main metric of a task that has none, such as ``rmse``.

    Parameters
    ----------
    measured
        Names of what was measured.
    """
    known = set(measured)
    if name != MAIN or MAIN in known:
        return name
    return next((task.main for task in TASKS.values() if task.main in known), name)


def unmeasured(name: str, measured: Iterable[str]) -> str:
    """Return what to do about a metric that runs have not measured, as the end of an error's line.

    Parameters
    ----------
    measured
        Names of what was measured.
    """
    known, metric = set(measured), metric_of(name)
    choices = ", ".join([*(each for each in SELECTING if each in known), *sorted(filter(OWN_NAME.fullmatch, known))])
    tasks = {task.name for task in TASKS.values() if task.main in known}
    if tasks and tasks.isdisjoint(metric.tasks):
        return f"the task has no {name}, choose one of {choices}"
    if classes := sorted(each for each in known if each.startswith(f"{MAIN}:")) if metric.name == BY_CLASS else []:
        return f"its classes are {', '.join(each.removeprefix(f'{MAIN}:') for each in classes)}"
    if OWN_NAME.fullmatch(name):
        return f"choose one of {choices}, or run again with it in [metric]"
    where = "" if tasks and tasks <= set(metric.tasks) else ", if the task has it"
    return f"choose one of {choices}, or run again with evaluation.metrics = ['{metric.name}']{where}"


def be_selecting(name: str) -> str:
    """Return a name of a metric that can select models.

    Raises
    ------
    ValueError
        If there is no such metric.
    """
    if not is_selecting(name):
        raise ValueError(f"must be one of {', '.join(SELECTING)}, or {OWN}NAME, your own")
    return name


def be_a_metric(name: str) -> str:
    """Return a name that can be in the records.

    Raises
    ------
    ValueError
        If there is no such metric.
    """
    if not is_metric(name):
        raise ValueError(f"must be one of {KNOWN}")
    return name


def mean_of_known(values: Sequence[float | None]) -> tuple[float, int]:
    """Return the mean of the values that are known, NaN if none is, and the number of the others.

    It is to be shown with that number: it looks better than it is where clients without a value have diverged.
    """
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else math.nan, len(values) - len(known)


def label(name: str, *, capital: bool = False) -> str:
    """Return a metric's name in a text, or, with a capital letter, in a title."""
    name = name.removeprefix(OWN).removesuffix(LOWER)
    if name in ("rmse", "auroc", "r2"):
        return name.upper()
    words = name.replace("-", " ").replace("f1", "F1")
    return words[0].upper() + words[1:] if capital else words


def format_metric(name: str, value: float) -> str:
    """Return a value as text: a share in percent."""
    return f"{value:.1%}" if metric_of(name).unit == "share" else f"{value:.4g}"
