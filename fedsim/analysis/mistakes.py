"""What is wrong with examples that a model or a loss does not take, found once a measurement has failed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from traceback import extract_tb

import torch
from torch import Tensor

from fedsim.analysis.data import Data
from fedsim.analysis.models import Models
from fedsim.errors import OURS, error_line, is_of_the_user, message_of
from fedsim.models.copies import loaded
from fedsim.shortening import a_type
from fedsim.training.evaluation import cross_entropies
from fedsim.training.targets import IGNORED

FEW = 2


@contextmanager
def explained(models: Models, inputs: Tensor | None, data: Data | None) -> Iterator[None]:
    """Say of an error of a model, or of torch, which examples do not fit what; any other error stays as it is.

    Raises
    ------
    ValueError
        If the model does not take the inputs, or the criterion not the model's outputs and the targets.
    """
    try:
        yield
    except Exception as error:
        if not _is_said(error) and isinstance(inputs, Tensor) and len(inputs):
            _check(models, inputs, data, error)
        raise


def _is_said(error: Exception) -> bool:
    """Tell whether a check of fedsim's has found the mistake."""
    last = extract_tb(error.__traceback__)[-1]
    return isinstance(error, ValueError) and last.filename.startswith(OURS) and (last.line or "").startswith("raise")


def _check(models: Models, inputs: Tensor, data: Data | None, cause: Exception) -> None:
    try:
        model, few = loaded(models.model, models.fitted[0]), inputs[:FEW]
    except Exception:
        return  # the states are the reason, and the error says so
    with torch.no_grad():
        try:
            outputs = model(few)
        except Exception as error:
            raise ValueError(
                f"the model does not take inputs of {inputs.dtype}, shape {tuple(inputs.shape)}: {_text(error)}"
                f"{_remedy(models, inputs)}"
            ) from cause
        if models.calibration is not None:
            try:
                model(models.calibration[:FEW])
            except Exception as error:
                shape = tuple(models.calibration.shape)
                raise ValueError(f"the model does not take the calibration of shape {shape}: {_text(error)}") from cause
        if data is None:
            return
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"the model returns {a_type(outputs)}; barriers need a tensor of outputs, so wrap the model"
            ) from cause
        _check_losses(outputs, data, cause)


def _check_losses(outputs: Tensor, data: Data, cause: Exception) -> None:
    given = f"targets of {data.targets.dtype}, shape {tuple(data.targets.shape)}"
    described = f"outputs of shape {_shape(outputs.shape[1:])} and {given}"
    few = data.targets[:FEW]
    try:
        losses = data.criterion(outputs, few)
    except Exception as error:
        raise ValueError(f"the criterion does not take {described}: {_text(error)}{_rule(outputs, data)}") from cause
    if not isinstance(losses, Tensor) or losses.shape != (len(few),):
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"the criterion returns {shape} for {len(few)} examples; it must return one loss for each, as torch's "
            "losses do with reduction='none'"
        ) from cause
    if rule := _wrong_classes(outputs, data):
        raise ValueError(rule) from cause


def _text(error: Exception) -> str:
    """Return a message, with the place in the user's code if it passed through any."""
    return error_line(error) if is_of_the_user(error) else message_of(error)


def _remedy(models: Models, inputs: Tensor) -> str:
    """Return what may help, with a semicolon before it."""
    dtypes = {value.dtype for value in models.model.state_dict().values() if value.is_floating_point()}
    if len(dtypes) == 1 and inputs.dtype not in dtypes:
        return f"; the model's weights are {next(iter(dtypes))}: convert one of them"
    return ""


def _shape(rest: Sequence[int]) -> str:
    """Return the shape of n examples of which each has the rest."""
    return f"[{', '.join(map(str, ['n', *rest]))}]"


def _rule(outputs: Tensor, data: Data) -> str:
    """Return what targets of cross-entropy must be, with a semicolon before it."""
    if data.criterion is not cross_entropies:
        return ""
    if wrong := _wrong_classes(outputs, data):
        return f"; {wrong}"
    rule = f"class indices of int64, shape {_shape(outputs.shape[2:])}"
    targets = data.targets
    if targets.ndim == outputs.ndim and targets.shape[1:] == outputs.shape[1:]:
        return f"; give {rule}, such as targets.argmax(1), or shares of classes as {outputs.dtype}"
    if targets.ndim == outputs.ndim and targets.shape[1] == 1:
        return f"; give {rule}, such as targets.squeeze(1).long(), or another criterion"
    return f"; give {rule}, such as targets.long(), or another criterion"


def _wrong_classes(outputs: Tensor, data: Data) -> str:
    """Return which class index of cross-entropy is out of range; nothing if none is."""
    targets = data.targets
    if data.criterion is not cross_entropies or targets.is_floating_point() or outputs.ndim != targets.ndim + 1:
        return ""
    real, classes = targets[targets != IGNORED], outputs.shape[1]
    for found in (int(each) for each in ([real.min(), real.max()] if len(real) else [])):
        if not 0 <= found < classes:
            return f"targets have the class {found}; the model has outputs for classes from 0 to {classes - 1}"
    return ""
