"""The model that a config names, built and tried before training."""

import copy

import torch
from torch import Tensor, nn

from fedsim.config import Config
from fedsim.config.choices import CATALOGUES
from fedsim.data import Dataset
from fedsim.errors import ConfigError, error_line
from fedsim.models.building import initialise_lazy_, make_trainable_
from fedsim.models.layers import describe_
from fedsim.models.parametrised import parametrise_
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
    _check_forward(_copy(model, where).eval(), dataset, 2, where)
    _check_forward(_copy(model, where).train(), dataset, n, f"{where}, trained on {n} examples,")
    try:
        describe_(model, _two_inputs(dataset), config.model.head, config.model.freeze)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return model


def draw_model(config: Config, dataset: Dataset) -> nn.Module:
    """Build the model and check its tensors, with weights from torch's global random state."""
    model = CATALOGUES["models"].make(config.model, dataset.shape, len(dataset.classes))
    if isinstance(model, nn.Module):
        initialise_lazy_(model, _two_inputs(dataset))
        try:
            make_trainable_(model)
            parametrise_(model)
        except ValueError as error:
            raise ConfigError(f"model.name = {config.model.name!r}: {error}") from error
    return model


def _two_inputs(dataset: Dataset) -> Tensor:
    """Return two training inputs as the model takes them."""
    return dataset.normalise(dataset.train.inputs[:2].cpu())


def _copy(model: nn.Module, where: str) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a custom module or tensor may raise anything
        raise ConfigError(f"{where} cannot be copied for each client: {error_line(error)}") from error


def _check_forward(model: nn.Module, dataset: Dataset, n: int, where: str) -> None:
    examples, before = dataset.train[torch.arange(min(n, len(dataset.train)))], model.state_dict().keys()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = model(dataset.normalise(examples.inputs))
    except Exception as error:
        kind = "tokens" if examples.inputs.dtype == torch.int64 else "inputs"
        raise ConfigError(
            f"{where} does not accept {kind} of shape {dataset.shape} of {dataset.name!r}: {error_line(error)}"
        ) from error
    if added := [key for key in model.state_dict() if key not in before]:
        raise ConfigError(
            f"{where} adds {added[0]!r} in its forward pass, where it is too late to share it; create it in __init__, "
            "or use a lazy module, such as nn.LazyLinear"
        )
    expected = (len(examples), len(dataset.classes), *examples.targets.shape[1:])
    if not isinstance(outputs, Tensor) or outputs.shape != expected:
        found = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise ConfigError(
            f"{where} maps {len(examples)} inputs to {found}; it must be {expected}, a logit for each class of "
            f"{dataset.name!r}"
            + (" at each position; for fedsim's models of text predict = 'each'" if len(expected) > 2 else "")
        )
