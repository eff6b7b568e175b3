"""Checks that what an experiment asks for goes with what its models learn."""

from torch import nn

from fedsim.config.choices import method_name
from fedsim.errors import ConfigError
from fedsim.federation.federation import Federation
from fedsim.strategy import Strategy
from fedsim.training.evaluation import cross_entropies
from fedsim.training.metrics import MAIN, METRICS, OWN_NAME, meant, metric_of


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
