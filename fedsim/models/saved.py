"""Model checkpoints from anywhere: torch and safetensors files, matched to a model. Nothing is unpickled."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsim.errors import ConfigError
from fedsim.models.params import Params, first_keys

# Keys under which training scripts store the state dict, and prefixes that wrappers add to its keys.
WITHIN = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: Path, model: nn.Module, name: str) -> Params:
    """Read the weights of ``model`` from a file.

    Parameters
    ----------
    path
        Path of a ``.safetensors`` file, or of any other that `torch.save` wrote: a state dict, or a dict that has one
        under ``state_dict``, ``model_state_dict`` or ``model``. Keys may begin with ``module.`` or ``_orig_mod.``, as
        DataParallel and `torch.compile` write them.
    model
        Model with the keys, shapes and types; it is not changed.
    name
        Name of the model, for messages.

    Returns
    -------
    Params
        All entries of `fedsim.models.params.state_of`, on the CPU, in the model's types.

    Raises
    ------
    ConfigError
        If the file does not exist, is damaged, holds code or no state dict, or does not match the model.
    """
    state = _without_prefixes(_read(path), model)
    return _fit(state, model, f"{path} does not fit the model {name!r}", path)


def _read(path: Path) -> Params:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"{path} {what}; give a checkpoint as torch.save or safetensors write it")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged or not a safetensors file ({_line(error)}); save it again") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old file formats
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ConfigError(
            f"{path} holds more than tensors, or is damaged, and code in a file is never run; "
            "save model.state_dict() alone"
        ) from error
    except Exception as error:  # an arbitrary file may raise anything
        raise ConfigError(f"{path} is damaged or not a torch file ({_line(error)}); save it again") from error
    return _state_dict_in(content, path)


def _state_dict_in(content: Any, path: Path) -> Params:
    while isinstance(content, Mapping):
        within = next((key for key in WITHIN if isinstance(content.get(key), Mapping)), None)
        if within is None:
            break
        content = content[within]
    if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        return {str(key): value for key, value in content.items()}
    found = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        found = f"a dict with {', '.join(map(repr, list(content)[:5]))}" if content else "an empty dict"
    raise ConfigError(f"{path} holds {found} and no state dict; save model.state_dict(), alone or under 'state_dict'")


def _without_prefixes(state: Params, model: nn.Module) -> Params:
    own = model.state_dict().keys()
    while prefix := next((each for each in PREFIXES if all(key.startswith(each) for key in state)), None):
        if not state or any(key.startswith(prefix) for key in own):
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _fit(state: Params, model: nn.Module, problem: str, path: Path) -> Params:
    """Return the model's distinct entries from a state dict that may use any of the names of a tied tensor."""
    first, own = first_keys(model), model.state_dict()
    if unexpected := [key for key in state if key not in first]:
        raise ConfigError(f"{problem}: {_some(unexpected)} is not in the model, which has {_some(list(own))}; {REMEDY}")
    fitted: Params = {}
    for key, value in state.items():
        expected = own[key]
        if value.shape != expected.shape:
            raise ConfigError(
                f"{problem}: {key!r} has shape {tuple(value.shape)} and must be {tuple(expected.shape)}; {REMEDY}"
            )
        if value.is_floating_point() != expected.is_floating_point() or value.layout != torch.strided:
            found = value.dtype if value.layout == torch.strided else value.layout
            raise ConfigError(
                f"{problem}: {key!r} is {found} and must be {expected.dtype}; save the model's own weights"
            )
        value = value.detach().to("cpu", expected.dtype).contiguous()
        if not bool(value.isfinite().all()):
            raise ConfigError(
                f"{path}: {key!r} has values that are not finite; training has diverged, use another checkpoint"
            )
        if not torch.equal(fitted.setdefault(first[key], value), value):
            raise ConfigError(f"{problem}: {key!r} is tied to {first[key]!r} and has other values; {REMEDY}")
    # Old versions of torch did not save the number of batches of a normalisation, which affects no output.
    fitted |= {key: own[key].cpu() for key in own.keys() - fitted.keys() if key.endswith("num_batches_tracked")}
    if missing := [key for key in own if first[key] not in fitted]:
        raise ConfigError(f"{problem}: it lacks {_some(missing)}; {REMEDY}")
    return {key: fitted[key] for key in own if first[key] == key}


REMEDY = "choose the model and its options with --model and --set model.KEY=VALUE"


def _some(keys: list[str]) -> str:
    return repr(keys[0]) + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")


def _line(error: Exception) -> str:
    """Return the type of an error and its first sentence."""
    text = " ".join(str(error).partition("\n")[0].partition(". ")[0].split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
