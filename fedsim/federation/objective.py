"""The loss that the clients of a run descend, and by which its models are measured."""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.config import Config
from fedsim.config.choices import CATALOGUES
from fedsim.data import Dataset
from fedsim.errors import ConfigError, error_line
from fedsim.models.purity import is_close
from fedsim.options import as_toml, by_name
from fedsim.shortening import a_type
from fedsim.training.losses import Loss, loss_of
from fedsim.training.targets import labels_of
from fedsim.training.tasks import LOSSES, TASKS

WEIGHTED = ("cross-entropy", "binary-cross-entropy")
TRIED, COMPARED = 2, 64


def make_objective(config: Config, dataset: Dataset) -> Loss:
    """Return the loss that ``[loss]`` chooses for the data's task, with the weights of classes if they are given.

    Raises
    ------
    ConfigError
        If it does not fit the task, an option is out of range, or there is not a weight for each class.
    """
    catalogue, name = CATALOGUES["losses"], catalogue_name(config)
    entry, options = catalogue.find(name), catalogue.options(config.loss)
    if name in LOSSES and options:
        try:
            entry(torch.zeros(1), torch.zeros(1), **options)
        except ValueError as error:
            raise ConfigError(f"loss.{error}") from error
    entry = entry if name in LOSSES else by_name(entry, catalogue.given)
    try:
        loss = loss_of(dataset.task, name, partial(entry, **options) if options else entry)
    except ValueError as error:
        raise ConfigError(f"loss.name = {config.loss.name!r} {str(error).partition(' ')[2]}") from error
    _check_weights(config, dataset, loss)
    weights = config.loss.class_weights
    return loss if isinstance(weights, str) else loss.weighted(torch.tensor(weights))


def catalogue_name(config: Config) -> str:
    """Return the name of the run's loss as `fedsim.training.tasks.LOSSES` has it, or that of a custom one."""
    return CATALOGUES["losses"].canonical(config.loss.name)


def balanced(targets: Tensor, classes: int) -> Tensor:
    """Return the weights by which the classes of these targets weigh the same, with mean 1 over the targets.

    A class without a target has the weight 0.
    """
    counts = np.bincount(labels_of(targets).long().flatten().cpu().numpy(), minlength=classes)
    present = counts > 0
    weights = np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 0.0)
    return torch.tensor(weights, dtype=torch.float32, device=targets.device)


def check_custom(config: Config, dataset: Dataset, model: nn.Module, loss: Loss) -> None:
    """Check that a custom loss takes the model's outputs, and returns a number for each example that has a gradient.

    Raises
    ------
    ConfigError
        If not.
    """
    if loss.name in LOSSES:
        return
    where = f"loss.name = {config.loss.name!r}"
    examples = dataset.train[torch.arange(TRIED, device=dataset.train.targets.device) % len(dataset.train)]
    with torch.random.fork_rng(devices=[]):
        outputs = model(dataset.normalise(examples.inputs))
    try:
        losses = loss.of_targets(outputs, examples.targets)
    except Exception as error:  # code of the user's may raise anything
        shapes = f"outputs of shape {tuple(outputs.shape)} and targets of {tuple(examples.targets.shape)}"
        raise ConfigError(f"{where} does not take {shapes}: {error_line(error)}") from error
    if not isinstance(losses, Tensor) or losses.shape != (TRIED,):
        found = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else a_type(losses)
        has_more = isinstance(losses, Tensor) and losses.ndim > 1 and len(losses) == TRIED
        how = "losses.flatten(1).mean(1) is" if has_more else "torch's losses do with reduction='none'"
        raise ConfigError(
            f"{where} returns {found} for {TRIED} examples; it must return one loss for each, shape ({TRIED},), as "
            f"{how}"
        )
    if not losses.requires_grad:
        raise ConfigError(f"{where} returns losses without a gradient; compute them from the outputs by torch alone")


def depends_on_batch(loss: Loss, model: nn.Module, dataset: Dataset) -> bool:
    """Return whether a custom loss gives an example another loss in another batch, as Cox's partial likelihood does."""
    if loss.name in LOSSES:
        return False
    examples = dataset.train[:COMPARED]
    half = (len(examples) + 1) // 2
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        outputs = model(dataset.normalise(examples.inputs))
        # Those of a head of zeros are the same for all examples.
        outputs = outputs + torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
        together = loss.of_targets(outputs, examples.targets)
        halves = zip(outputs.split(half), examples.targets.split(half), strict=True)
        apart = torch.cat([loss.of_targets(*half) for half in halves])
    return not is_close(apart, together)


def _check_weights(config: Config, dataset: Dataset, loss: Loss) -> None:
    weights = config.loss.class_weights
    if weights == "none":
        return
    setting = f"loss.class_weights = {as_toml(list(weights) if isinstance(weights, tuple) else weights)}"
    if not TASKS[dataset.task].has_classes or loss.name not in WEIGHTED:
        several = dataset.task == "multi-label" and loss.name in LOSSES
        remedy = "use a custom loss with pos_weight (docs/tasks.md)" if several else "leave it out"
        raise ConfigError(
            f"{setting} needs classes and cross-entropy, and the task is {dataset.task!r} with the loss {loss.name!r}; "
            f"{remedy}"
        )
    if isinstance(weights, tuple) and len(weights) != len(dataset.classes):
        raise ConfigError(
            f"{setting} has {len(weights)} numbers, and {dataset.name!r} has {len(dataset.classes)} classes; give one "
            "for each"
        )
