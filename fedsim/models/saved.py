"""Model checkpoints from anywhere, matched to a model: whatever lies around the weights is found and left out."""

import logging
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.errors import ConfigError
from fedsim.models.asymmetry import check_fixed
from fedsim.models.files import read_file
from fedsim.models.params import Params, first_keys
from fedsim.models.places import Place, is_optional, places_of
from fedsim.models.tensors import is_same
from fedsim.shortening import a_type, first_few

NAMED = 5  # of several sets of weights, how many a message names
LISTED = 3  # of several entries
REMEDY = "choose the model and the options that it was trained with, by model.name and its other settings"
logger = logging.getLogger(__name__)


def read_checkpoint(path: Path, model: nn.Module, name: str, skip: Container[str] = ()) -> Params:
    """Read the weights of ``model`` from a file.

    Parameters
    ----------
    path
        Path of a ``.safetensors`` file, of any other that `torch.save` wrote, of an index of shards, or of a folder
        of Hugging Face's. The weights may be at any depth of dicts and lists and under a common prefix, as Lightning,
        Fabric, DataParallel, FSDP and `torch.compile` write them. Where several sets of weights fit, the path ends
        with the name of one: ``last.ckpt:ema``.
    model
        Model with the keys, shapes and types; it is not changed.
    name
        Name of the model, for messages.
    skip
        Keys of the model, under each name, that the file may lack or have in other shapes; they are not read.

    Returns
    -------
    Params
        All entries of `fedsim.models.params.state_of`, and the frozen tensors that the file has. They are on the CPU,
        in the model's types.

    Raises
    ------
    ConfigError
        If the file does not exist, is damaged, holds code or no weights, or does not fit the model, also by the
        entries that are fixed in it, or if several different sets of weights in it do.
    """
    file, wanted = _parts(path)
    return find_weights(read_file(file), model, name, str(path), wanted, skip)


def find_weights(
    content: Any, model: nn.Module, name: str, where: str, wanted: str = "", skip: Container[str] = ()
) -> Params:
    """Return the weights of ``model`` in what a file holds, as `read_checkpoint` does.

    Parameters
    ----------
    where
        Name of the content, for messages.
    wanted
        Name of the one that is meant, where there are several.

    Raises
    ------
    ConfigError
        If there are none, or several different ones, or they do not fit.
    """
    try:
        places = places_of(content, model, skip)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not places:
        raise ConfigError(
            f"{where} holds {_described(content)} and no state dict; save model.state_dict(), alone or under "
            "'state_dict'"
        )
    problem = f"{where} does not fit the model {name!r}"
    place = _chosen(places, wanted, where, problem)
    if place.outside:
        logger.warning("%s: left out %s, not under %r", where, _some(place.outside), place.prefix)
    fitted = _fit(place.entries, model, problem, where)
    try:
        check_fixed(model, fitted, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return fitted


def _parts(path: Path) -> tuple[Path, str]:
    """Return the path of a file, and the name of the weights in it that the path may end with."""
    file, colon, wanted = str(path).rpartition(":")
    return (Path(file), wanted) if colon and not path.exists() and Path(file).exists() else (path, "")


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return a_type(content)
    return f"a dict with {', '.join(map(repr, list(content)[:5]))}" if content else "an empty dict"


def _chosen(places: Sequence[Place], wanted: str, where: str, problem: str) -> Place:
    """Return the one place that holds the model.

    Raises
    ------
    ConfigError
        If none does, or several that differ.
    """
    if wanted:
        places = [each for each in places if each.name == wanted] or [
            each for each in places if f"/{wanted}/" in f"/{each.name}/"
        ]
        if not places:
            raise ConfigError(f"{where}: the file has no weights called {wanted!r}")
    whole = [each for each in places if each.is_whole]
    if not whole:
        raise ConfigError(f"{problem}: {_difference(max(places, key=lambda each: each.likeness))}")
    if any(not _alike(each, whole[0]) for each in whole[1:]):
        names = [each.name for each in whole if each.name]
        raise ConfigError(
            f"{where} holds {len(whole)} sets of weights that fit the model: {', '.join(names[:NAMED])}"
            + (", ..." if len(names) > NAMED else "")
            + f"; choose one, such as {where}:{names[0]}"
        )
    place = min(whole, key=lambda each: len(each.unknown))
    if place.unknown:
        raise ConfigError(f"{problem}: {_difference(place)}")
    return place


def _alike(one: Place, other: Place) -> bool:
    """Whether two places hold the same weights."""
    common = one.entries.keys() & other.entries.keys()
    return all(is_same(one.entries[key], other.entries[key]) for key in common)


def _difference(place: Place) -> str:
    """Return in which entries a place and the model differ, and what helps."""
    if any("lora_" in key for key in place.unknown):
        found = f"{_some(place.unknown)} {_is(place.unknown)} of an adapter"
        return f"{found}; merge adapters first, as peft's merge_and_unload does"
    if place.missing and place.unknown:
        return f"it lacks {_some(place.missing)} and has {_some(place.unknown)} instead; {REMEDY}"
    if place.unknown:
        known = [key for key in place.entries if key not in place.unknown]
        return f"{_some(place.unknown)} {_is(place.unknown)} not in the model, which has {_some(known)}; {REMEDY}"
    if not place.shapes:
        return f"it lacks {_some(place.missing)}; {REMEDY}"
    shape, more = tuple(place.entries[next(iter(place.shapes))].shape), len(place.shapes) - LISTED
    found = ", ".join(
        f"{key!r} has shape {tuple(place.entries[key].shape)} and must be {expected}"
        for key, expected in list(place.shapes.items())[:LISTED]
    ) + (f" ({more} more differ too)" if more > 0 else "")
    if shape and all(place.entries[each].shape[1:] == torch.Size(other[1:]) for each, other in place.shapes.items()):
        found += ", as if for another number of classes"
    return f"{found}; {REMEDY}"


def _fit(state: Params, model: nn.Module, problem: str, where: str) -> Params:
    """Return the model's distinct entries from a state dict that may use any of the names of a tied tensor."""
    first, own = first_keys(model), model.state_dict()
    fitted: Params = {}
    for key, value in state.items():
        converted = _converted(key, value, own[key], problem, where)
        if not is_same(fitted.setdefault(first[key], converted), converted):
            raise ConfigError(f"{problem}: {key!r} is tied to {first[key]!r} and has other values; {REMEDY}")
    if changed := {
        f"{value.dtype} to {own[key].dtype}" for key, value in state.items() if value.dtype != own[key].dtype
    }:
        logger.warning("%s: converted from %s", where, ", ".join(sorted(changed)).replace("torch.", ""))
    fitted |= {key: own[key].cpu() for key in own.keys() - fitted.keys() if is_optional(key)}
    return {key: fitted[key] for key in own if first[key] == key and key in fitted}


def _converted(key: str, value: Tensor, expected: Tensor, problem: str, where: str) -> Tensor:
    """Return an entry in the model's type, on the CPU."""
    kinds = [(each.is_floating_point(), each.is_complex(), each.layout) for each in (value, expected)]
    if kinds[0] != kinds[1] or value.is_quantized:
        found = value.dtype if value.layout == torch.strided else value.layout
        raise ConfigError(f"{problem}: {key!r} is {found} and must be {expected.dtype}; save the model's own weights")
    converted = value.detach().to("cpu", expected.dtype).contiguous()
    if not bool(value.isfinite().all()) and bool(expected.isfinite().all()):  # masks are infinite in the model too
        raise ConfigError(
            f"{where}: {key!r} has values that are not finite; training has diverged, use another checkpoint"
        )
    if bool(value.isfinite().all()) and not bool(converted.isfinite().all()):
        raise ConfigError(
            f"{problem}: {key!r} has values too large for {expected.dtype}; use a wider type in the model"
        )
    return converted


def _is(keys: Sequence[str]) -> str:
    return "is" if len(keys) == 1 else "are"


def _some(keys: Sequence[str]) -> str:
    return first_few(list(map(repr, keys)), LISTED)
