"""Checks that what an experiment asks for goes with what its models learn."""

import math
from collections.abc import Iterator

import numpy as np
from torch import nn

from fedsim.config.choices import CATALOGUES, method_name
from fedsim.data.dataset import channel_statistics
from fedsim.errors import ConfigError
from fedsim.federation.federation import Federation
from fedsim.shortening import cut
from fedsim.strategy import Strategy
from fedsim.training.evaluation import cross_entropies
from fedsim.training.metrics import MAIN, METRICS, OWN_NAME, meant, metric_of
from fedsim.training.tasks import LOSSES

LONGEST = 16  # letters of the name of a target
FACTOR = 10  # between deviations of targets and 1, between two of them, and between a mean and its deviation


def check_task(federation: Federation, strategy: Strategy) -> None:
    """Check that the strategy is defined for the run's task and loss, and the metrics for the task.

    Raises
    ------
    ConfigError
        If not.
    """
    config, loss = federation.config, federation.objective
    if config.local.label_smoothing and loss.name != "cross-entropy":
        raise ConfigError(
            f"local.label_smoothing = {config.local.label_smoothing:g} is for cross-entropy over classes, and the loss "
            f"is {loss.name!r}; leave it out"
        )
    _check_metrics(federation)
    _check_neighbours(federation)
    if "similarity" in config.barriers.measures and not (federation.task.has_classes and federation.task.of_indices):
        raise ConfigError(
            f"barriers.measures holds 'similarity', which compares most likely classes, and the task is "
            f"{federation.task.name!r}; leave it out"
        )
    if "calibrated" in config.barriers.measures and federation.criterion is not cross_entropies:
        raise ConfigError(
            f"barriers.measures holds 'calibrated', which is defined for cross-entropy over classes, and the task is "
            f"{federation.task.name!r} with the loss {loss.name!r}; leave it out"
        )
    if strategy.client_rule.cross_entropy_only:
        where = f"strategy.name = {method_name(config)!r} is defined for cross-entropy over classes"
        if not federation.task.has_classes or loss.of_targets is not type(loss)().of_targets:
            raise ConfigError(
                f"{where}, and the task is {federation.task.name!r} with the loss {loss.name!r}; choose another "
                "strategy"
            )
        if config.loss.class_weights != "none":
            raise ConfigError(f"{where} without weights, and loss.class_weights is set; leave it out")


def scale_notes(federation: Federation) -> Iterator[str]:
    """Yield which numbers to predict have a scale that training diverges with, or learns little of.

    Those of an image, as an autoencoder predicts it, have one scale per channel, as inputs do.
    """
    dataset, loss = federation.data.dataset, federation.objective
    if federation.task.name != "regression" or loss.name not in LOSSES:
        return
    targets = dataset.train.targets
    columns = dataset.shape[0] if dataset.outputs == math.prod(dataset.shape) else dataset.outputs
    values = targets.reshape(len(targets), columns, -1)
    varies = (values.amax((0, 2)) > values.amin((0, 2))).cpu().numpy()
    places = np.flatnonzero(varies)
    if not len(places):
        return
    mean, std = (np.array(each)[places] for each in channel_statistics(values, 1.0, dataset.trainable))
    low, high, far = int(std.argmin()), int(std.argmax()), int((abs(mean) / std).argmax())
    if max(1, std[high]) > FACTOR * min(1, std[low]):
        shown = sorted({low, high})
    elif abs(mean[far]) > FACTOR * std[far]:
        shown = [far]
    else:
        return
    names = _target_names(federation, columns)
    yield (
        f"{', '.join(f'{names[places[k]]} is {mean[k]:.3g} ± {std[k]:.3g}' for k in shown)}: training may diverge "
        "with targets so far from 0 ± 1; give (target - mean) / deviation, and metrics are in deviations"
    )


def _target_names(federation: Federation, columns: int) -> list[str]:
    """Return what the data's option names as the targets, or their numbers."""
    given = CATALOGUES["data"].options(federation.config.data).get("target", ())
    names = [given] if isinstance(given, str) else given
    return [f"target {cut(names[k], LONGEST)!r}" if len(names) == columns else f"target {k}" for k in range(columns)]


def _check_neighbours(federation: Federation) -> None:
    """Check that examples have one class each and the model has a head, where neighbours are evaluated."""
    if "knn" not in federation.config.evaluation.models:
        return
    task, targets = federation.task, federation.data.dataset.train.targets
    where = "evaluation.models holds 'knn', "
    if not (task.has_classes and task.of_indices and targets.ndim == 1):
        kind = "of sequences" if task.of_indices else f"of the task {task.name!r}"
        raise ConfigError(
            f"{where}in which neighbours name the class of an example, and targets {kind} have none each; leave it out"
        )
    if federation.client_rule.has_network:
        raise ConfigError(
            f"{where}and clients of strategy.name = {method_name(federation.config)!r} evaluate more than the run's "
            "model; leave it out"
        )
    try:
        head = federation.layers.group("head").layers
    except ValueError as error:
        raise ConfigError(f"{where}whose neighbours are by what the head gets: {error}") from error
    if len(head) != 1 or not isinstance(federation.model().get_submodule(head[0]), nn.Linear):
        raise ConfigError(
            f"{where}whose neighbours are by what a linear head gets, and the head of this model is "
            f"{', '.join(head) or 'none'}; leave it out, or name a linear layer in model.head"
        )


def _check_metrics(federation: Federation) -> None:
    config, task = federation.config, federation.task.name
    asked = [("evaluation.metrics holds", name) for name in config.evaluation.metrics]
    asked += [("stop.metric =", config.stop.metric)] if config.stop.by and config.stop.metric != MAIN else []
    for where, name in asked:
        if OWN_NAME.fullmatch(name) and name not in config.metric.measured:
            given = ", ".join(config.metric.measured) or "nothing, as it names no metric"
            raise ConfigError(f"{where} {name!r}, which [metric] does not give; it gives {given}")
        if task not in metric_of(name).tasks:
            known = ", ".join(each.name for each in METRICS.values() if task in each.tasks)
            raise ConfigError(f"{where} {name!r}, which the task {task!r} does not have; its metrics are: {known}")
    target, metric = config.stop.target, meant(config.stop.metric, (federation.task.main,))
    if target is not None and metric_of(metric).unit == "share" and not 0 < target <= 1:
        raise ConfigError(
            f"stop.target = {target:g} must be greater than 0 and at most 1, as {metric} is, such as 0.9 for 90 %"
        )
