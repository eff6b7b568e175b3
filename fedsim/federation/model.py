"""The model that a config names, built and tried before training."""

import copy
import inspect
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.config import Config, making
from fedsim.config.choices import CATALOGUES
from fedsim.config.tables import ModelConfig
from fedsim.data import Dataset
from fedsim.data.checks import TOKENS_RULE
from fedsim.data.dataset import in_usual_order
from fedsim.data.tasks import task_of
from fedsim.errors import ConfigError, error_line, message_of
from fedsim.federation.weights import load_weights_
from fedsim.models.adapter import Adapter
from fedsim.models.adapters import adapt_, hold_bases_
from fedsim.models.asymmetry import Asymmetry, asymmetrise_
from fedsim.models.building import initialise_lazy_, make_trainable_
from fedsim.models.copies import copy_of
from fedsim.models.fitting import FittingTensors
from fedsim.models.frozen import frozen_keys, unsettle_
from fedsim.models.layers import describe_
from fedsim.models.parametrised import parametrise_
from fedsim.models.ranks import deal_ranks_
from fedsim.shortening import a_type
from fedsim.training.dropout import seeded_dropout_

logger = logging.getLogger(__name__)
# Functions that leave values as they are, as autograd names them.
RESHAPES = (
    *("Alias", "Clone", "Permute", "Reshape", "Select", "Slice", "Squeeze", "ToCopy", "Unsafe", "Unsqueeze", "View"),
)


def make_model(config: Config, dataset: Dataset, sizes: np.ndarray) -> nn.Module:
    """Build the model that ``[model]`` chooses, with weights from its file or from torch's random state.

    Parameters
    ----------
    sizes
        Number of training examples of each client.

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
        raise ConfigError(f"{where} gives {a_type(model)}; it must be a torch.nn.Module with parameters")
    seeded_dropout_(model)
    _order_images_(model, dataset)
    writes = _check_forward(_copy(model, where).eval(), dataset, 2, where)
    trained = _copy(model, where).train()
    if _check_forward(trained, dataset, 2, f"{where}, trained on 2 examples,") or writes:
        # Data are used again: in the next evaluation, and by rules that run several models on a batch.
        model.register_forward_pre_hook(_with_own_inputs)
    if min(config.local.batch_size, int(sizes.min())) < 2:
        _check_single_examples(_copy(model, where).train(), config, dataset, sizes)
    try:
        describe_(model, _probes(dataset, 2), config.model.head, config.model.freeze)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    _check_frozen(model, trained, where)
    _check_last(trained.eval(), config, dataset, where)
    if config.model.adapter.kind == "none":
        _load_weights_(model, config.model)
    return model


def draw_model(config: Config, dataset: Dataset) -> nn.Module:
    """Build the model and check its tensors, with weights from torch's global random state."""
    catalogue = CATALOGUES["models"]
    asked = inspect.signature(catalogue.find(config.model.name)).parameters
    of_tokens = {"vocabulary": dataset.tokens}
    if dataset.pad_token is not None:
        of_tokens["pad_token"] = dataset.pad_token
    given = {name: value for name, value in of_tokens.items() if name in asked}
    with FittingTensors():
        model = catalogue.make(config.model, dataset.shape, dataset.outputs, **given)
        if isinstance(model, nn.Module):
            initialise_lazy_(model, in_usual_order(_probes(dataset, 2)))
    if isinstance(model, nn.Module):
        try:
            make_trainable_(model)
            parametrise_(model)
        except ValueError as error:
            raise ConfigError(f"model.name = {config.model.name!r}: {error}") from error
        if config.model.adapter.kind != "none":
            _adapt_(model, config, _probes(dataset, 2))
        _asymmetrise_(model, config, _probes(dataset, 2))
    return model


def _adapt_(model: nn.Module, config: Config, inputs: Tensor) -> None:
    """Add the adapters that ``[model.adapter]`` asks for to a model, whose weights come from their file first."""
    settings = config.model
    try:
        describe_(model, inputs, settings.head)
        _load_weights_(model, settings)
        adapt_(model, Adapter(**settings.adapter.model_dump()), inputs)
        if settings.adapter.ranks:
            deal_ranks_(model, settings.adapter.ranks)
        if making.strategy_class(config).holds_bases:
            hold_bases_(model)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"[model.adapter] {error}") from error
    unsettle_(model)


def _asymmetrise_(model: nn.Module, config: Config, inputs: Tensor) -> None:
    """Fix what ``[model.asymmetry]`` asks for, the same in all models of a run."""
    settings = config.model.asymmetry
    if settings.kind != "none":
        seed = config.seed if settings.seed is None else settings.seed
        try:
            describe_(model, inputs, config.model.head)
            asymmetrise_(model, Asymmetry(settings.kind, settings.fixed, settings.kappa), seed, inputs)
        except ValueError as error:
            raise ConfigError(f"[model.asymmetry] {error}") from error
        unsettle_(model)


def _load_weights_(model: nn.Module, settings: ModelConfig) -> None:
    if settings.weights and CATALOGUES["models"].is_fixed("weights", settings):
        load_weights_(model, settings)


def _copy(model: nn.Module, where: str) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a custom module or tensor may raise anything
        raise ConfigError(f"{where} cannot be copied for each client: {error_line(error)}") from error


def _order_images_(model: nn.Module, dataset: Dataset) -> None:
    """Let a model get images in torch's usual order, where ours have their channels last, if it needs them so."""
    probes = _probes(dataset, 2)
    if probes.ndim != 4:
        return
    views_images = not _takes(model, probes) and _takes(model, in_usual_order(probes))
    if views_images or any(_is_miscomputed(module) for module in model.modules()):
        model.register_forward_pre_hook(_with_usual_order)


def _is_miscomputed(module: nn.Module) -> bool:
    """Return whether oneDNN may give wrong gradients of this layer, or end the process, if channels come last.

    Its kernel for strides of 1 x 1 convolutions writes whole vectors, of 8 or 16 channels, into room for fewer
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and module.in_channels < 16
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
    )


def _takes(model: nn.Module, inputs: Tensor) -> bool:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy_of(model).eval()(inputs)
    except Exception:  # of whatever a custom model raises, the checks tell
        return False
    return True


def _with_usual_order(model: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (in_usual_order(args[0]), *args[1:])


def _with_own_inputs(model: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].clone(), *args[1:])


def _probes(dataset: Dataset, n: int) -> Tensor:
    """Return training inputs as a model takes them; where they are tokens, the last one of the vocabulary is there."""
    inputs = dataset.normalise(dataset.train.inputs[torch.arange(n) % len(dataset.train)].cpu())
    if dataset.tokens:
        inputs.view(-1)[0] = dataset.tokens - 1
    return inputs


def _other_channels(model: nn.Module, dataset: Dataset) -> str:
    """Return what to do about a model of images with another number of channels; empty if it is not that."""
    taken = next((each.in_channels for each in model.modules() if isinstance(each, nn.Conv2d)), None)
    if taken is None or len(dataset.shape) != 3 or taken == dataset.shape[0]:
        return ""
    mode = {1: "L", 3: "RGB"}.get(taken)
    convert = f" ([data] mode = '{mode}' of image-folder and huggingface)" if mode else ""
    return (
        f"takes images with {taken} channel{'s' * (taken != 1)}, but the images of {dataset.name!r} have "
        f"{dataset.shape[0]}; build the model for the shape that it is given, or convert the images{convert}"
    )


def _check_forward(model: nn.Module, dataset: Dataset, n: int, where: str) -> bool:
    """Check that a model maps inputs to what the task needs, and return whether it changes them in place."""
    before, inputs = model.state_dict().keys(), _probes(dataset, n)
    version = inputs._version
    try:
        # Evaluation is in inference mode, where `torch.enable_grad` has no effect.
        with torch.no_grad() if model.training else torch.inference_mode(), torch.random.fork_rng(devices=[]):
            outputs = model(inputs)
    except Exception as error:
        if reason := _other_channels(model, dataset):
            raise ConfigError(f"{where} {reason}") from error
        kind, hint = "inputs", ""
        if not model.training and "grad" in str(error):
            hint = (
                "; evaluation has no gradients: if forward computes some, let it do so in torch.inference_mode(False) "
                "and torch.enable_grad(), of a clone of its inputs"
            )
        if dataset.tokens:
            kind = "tokens"
            hint = (
                f"; a model with a parameter vocabulary gets the number of tokens, {dataset.tokens}"
                if isinstance(error, IndexError)
                else f"; {TOKENS_RULE}"
            )
        raise ConfigError(
            f"{where} does not accept {kind} of shape {dataset.shape} of {dataset.name!r}: {error_line(error)}{hint}"
        ) from error
    if added := [key for key in model.state_dict() if key not in before]:
        raise ConfigError(
            f"{where} adds {added[0]!r} in its forward pass, where it is too late to share it; create it in __init__, "
            "or use a lazy module, such as nn.LazyLinear"
        )
    _check_outputs(outputs, dataset, n, where)
    return inputs._version != version


def _check_outputs(outputs: Any, dataset: Dataset, n: int, where: str) -> None:
    """Check the shape of a model's outputs; vocabularies of language models may be padded beyond the data's tokens."""
    targets, task = dataset.train.targets, task_of(dataset).name
    are_numbers = targets.is_floating_point()
    expected = (n, dataset.outputs) if are_numbers else (n, dataset.outputs, *targets.shape[1:])
    fits = [expected, (n,)] if are_numbers and dataset.outputs == 1 else [expected]
    if not isinstance(outputs, Tensor):
        raise ConfigError(
            f"{where} maps {n} inputs to {a_type(outputs)}; it must be one tensor, {expected}: let forward "
            f"return {'the predictions' if are_numbers else 'the logits'} alone"
        )
    shape = tuple(outputs.shape)
    if task == "next-token" and len(shape) > 1:
        fits.append((n, max(dataset.outputs, shape[1]), *targets.shape[1:]))
    if shape in fits:
        return
    found = f"{where} maps {n} inputs to shape {shape}; it must be {expected}"
    if are_numbers:
        raise ConfigError(f"{found} for the task {task!r} of {dataset.name!r}")
    remedy = ""
    if len(shape) == len(expected) and shape[1] != expected[1]:
        remedy = "; build it for the number of classes that it is given"
    elif dataset.tokens and len(shape) != len(expected):
        remedy = f"; for fedsim's models of text predict = '{'each' if len(expected) > 2 else 'last'}'"
    at_each = " at each position" if len(expected) > 2 else ""
    raise ConfigError(f"{found}, a logit for each class of {dataset.name!r}{at_each}{remedy}")


def _check_last(model: nn.Module, config: Config, dataset: Dataset, where: str) -> None:
    """Check that a model gives logits: those of a sigmoid would all count as yes, a softmax would be taken twice."""
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            node = model(_probes(dataset, 2)).grad_fn
    except Exception as error:  # what works without a graph may fail with one
        logger.debug("the last function of the model is not known: %s", error)
        return
    while node is not None and node.name().startswith(RESHAPES):
        node = node.next_functions[0][0]
    name = "" if node is None else node.name()
    if name.startswith("Sigmoid") and task_of(dataset).name in ("binary", "multi-label"):
        raise ConfigError(
            f"{where} ends in a sigmoid, and the task {task_of(dataset).name!r} takes logits, of which all positive "
            "ones count as yes; return what the sigmoid gets"
        )
    takes_logits = ":" not in config.loss.name and not dataset.train.targets.is_floating_point()
    if name.startswith("Softmax") and takes_logits:
        logger.warning("%s ends in a softmax, and the cross-entropy takes another one; return what it gets", where)


def _check_frozen(model: nn.Module, trained: nn.Module, where: str) -> None:
    """Check that a forward pass in training mode has left the frozen parameters, which all clients share, unchanged."""
    frozen, after = frozen_keys(model), dict(trained.named_parameters())
    for key, value in model.named_parameters():
        if key in frozen and not torch.equal(value, after[key]):
            raise ConfigError(
                f"{where} changes {key!r} in its forward pass, though it is frozen, and all clients share it; register "
                "it as a buffer, which each client keeps, or let it require a gradient"
            )


def _check_single_examples(model: nn.Module, config: Config, dataset: Dataset, sizes: np.ndarray) -> None:
    """Check that a model can be trained on one example, as some clients would: batch normalisation cannot."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(_probes(dataset, 1))
    except Exception as error:
        who, remedy = "local.batch_size = 1 gives such batches", "use a larger one"
        if config.local.batch_size > 1:
            few = np.flatnonzero(sizes < 2)
            who = f"client {few[0]}" + (f" and {len(few) - 1} more have" if len(few) > 1 else " has") + " only one"
            remedy = "use fewer clients, more examples or a larger min_size"
        raise ConfigError(
            f"model.name = {config.model.name!r} cannot be trained on one example ({message_of(error)}): {who}; "
            f"{remedy}, or a model without batch normalisation, as by norm = 'group'"
        ) from error
