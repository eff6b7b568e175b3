"""The model that a config names, built and tried before training."""

import copy

import torch
from torch import Tensor, nn

from fedsim.config import Config
from fedsim.config.choices import CATALOGUES
from fedsim.data import Dataset
from fedsim.errors import ConfigError, error_line
from fedsim.training.dropout import seeded_dropout_


def make_model(config: Config, dataset: Dataset, smallest: int = 2) -> nn.Module:
    """Build the model that ``[model]`` chooses, with weights from torch's global random state and seeded dropout.

    Parameters
    ----------
    smallest
        Number of training examples of the smallest client.

    Raises
    ------
    ConfigError
        If it cannot be built or trained, or does not map the data's inputs to one logit per class.
    """
    where = f"model.name = {config.model.name!r}"
    try:
        model = draw_model(config, dataset)
    except ConfigError:
        raise
    except Exception as error:  # a custom model may raise anything
        shape = f"inputs of shape {dataset.shape}"
        raise ConfigError(f"{where} cannot be built for {shape}: {error_line(error)}") from error
    if not isinstance(model, nn.Module) or not any(True for _ in model.parameters()):
        raise ConfigError(f"{where} gives a {type(model).__name__}; it must be a torch.nn.Module with parameters")
    seeded_dropout_(model)
    n = min(2, smallest, config.local.batch_size)  # batch normalisation has no statistics over a single number
    _check_forward(copy.deepcopy(model).eval(), dataset, 2, where)
    _check_forward(copy.deepcopy(model).train(), dataset, n, f"{where}, trained on {n} examples,")
    return model


def draw_model(config: Config, dataset: Dataset) -> nn.Module:
    """Build the model without checks, with weights from torch's global random state; `make_model` has checked one."""
    return CATALOGUES["models"].make(config.model, dataset.shape, len(dataset.classes))


def _check_forward(model: nn.Module, dataset: Dataset, n: int, where: str) -> None:
    examples = dataset.train[torch.arange(min(n, len(dataset.train)))]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = model(dataset.normalise(examples.inputs))
    except Exception as error:
        kind = "tokens" if examples.inputs.dtype == torch.int64 else "inputs"
        raise ConfigError(
            f"{where} does not accept {kind} of shape {dataset.shape} of {dataset.name!r}: {error_line(error)}"
        ) from error
    expected = (len(examples), len(dataset.classes), *examples.targets.shape[1:])
    if not isinstance(outputs, Tensor) or outputs.shape != expected:
        found = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise ConfigError(
            f"{where} maps {len(examples)} inputs to {found}; it must be {expected}, a logit for each class of "
            f"{dataset.name!r}"
            + (" at each position; for fedsim's models of text predict = 'each'" if len(expected) > 2 else "")
        )
