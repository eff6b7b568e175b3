"""Model checkpoints from anywhere, matched to a model: whatever lies around the weights is found and left out."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.errors import ConfigError
from fedsim.models.files import read_file
from fedsim.models.params import Params, first_keys

# Parts of keys that wrappers add, anywhere: torch.compile, Fabric, FSDP, activation checkpointing.
WRAPPERS = {"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
DEEPEST = 5  # levels of dicts in which weights are looked for
REMEDY = "choose the model and its options with --model and --set model.KEY=VALUE"
logger = logging.getLogger(__name__)


def read_checkpoint(path: Path, model: nn.Module, name: str) -> Params:
    """Read the weights of ``model`` from a file.

    Parameters
    ----------
    path
        Path of a ``.safetensors`` file, of any other that `torch.save` wrote, of an index of shards, or of a folder
        of Hugging Face's. The weights may be at any depth of dicts and under a common prefix, as Lightning, Fabric,
        DataParallel, FSDP and `torch.compile` write them. Where several sets of weights fit, the path ends with the
        name of one: ``last.ckpt:ema``.
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
        If the file does not exist, is damaged, holds code or no weights, or does not fit the model, or if several
        different sets of weights in it do.
    """
    file, wanted = _parts(path)
    content = read_file(file)
    places = [place for each in _states(content) for place in _places(*each, model)]
    if not places:
        raise ConfigError(
            f"{path} holds {_described(content)} and no state dict; save model.state_dict(), alone or under "
            "'state_dict'"
        )
    problem = f"{path} does not fit the model {name!r}"
    place = _chosen(places, wanted, path, problem)
    if place.outside:
        logger.warning("%s: left out %s, which is not under %r", path, _some(place.outside), place.prefix)
    return _fit(place.entries, model, problem, path)


def _parts(path: Path) -> tuple[Path, str]:
    """Return the path of a file, and the name of the weights in it that the path may end with."""
    file, colon, wanted = str(path).rpartition(":")
    return (Path(file), wanted) if colon and not path.exists() and Path(file).exists() else (path, "")


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return f"a dict with {', '.join(map(repr, list(content)[:5]))}" if content else "an empty dict"


@dataclass(frozen=True)
class _Place:
    """Entries of a file under one prefix, by their keys without it and without what wrappers add.

    Parameters
    ----------
    where
        Keys of the dicts around them, separated by slashes.
    outside
        The keys of the other entries of the same dict.
    missing, unknown
        The model's keys that it lacks, by the first name of a tied tensor, and its own that the model does not have.
    shapes
        The model's shapes, of those keys that have other ones.
    """

    where: str
    prefix: str
    entries: Params
    outside: Sequence[str]
    missing: Sequence[str]
    unknown: Sequence[str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        """What a path ends with to choose it."""
        return "/".join(part for part in (self.where, self.prefix.rstrip(".")) if part)

    @property
    def is_whole(self) -> bool:
        """Whether it has all that the model needs; it may have more."""
        return not self.missing and not self.shapes

    @property
    def likeness(self) -> tuple[int, int]:
        """How many of its keys are the model's, and how many shapes are not."""
        return len(self.entries) - len(self.unknown), -len(self.shapes)


def _states(content: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, Params]]:
    """Yield the dicts with tensors at any depth, by their place."""
    if not isinstance(content, Mapping) or depth > DEEPEST:
        return
    arrays = {str(key): _tensor(value) for key, value in content.items()}
    if found := {key: value for key, value in arrays.items() if value is not None}:
        yield where, found
    for key, value in content.items():
        yield from _states(value, f"{where}/{key}".removeprefix("/"), depth + 1)


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(value.copy())
    return value if isinstance(value, Tensor) else None


def _places(where: str, state: Params, model: nn.Module) -> Iterator[_Place]:
    """Yield the entries under each prefix after which the model's keys follow, or all if there is none."""
    first, own = first_keys(model), model.state_dict()
    names = {_plain(key): key for key in own}
    keys = {_plain(key): key for key in state}
    prefixes = Counter(key[: len(key) - len(end)] for key in keys for end in _ends(key) if end in names)
    for prefix in prefixes or [""]:
        inside = {key.removeprefix(prefix): state[old] for key, old in keys.items() if key.startswith(prefix)}
        entries = {names.get(key, key): value for key, value in inside.items()}
        present = {first[key] for key in entries if key in first}
        yield _Place(
            where,
            prefix,
            entries,
            [old for key, old in keys.items() if not key.startswith(prefix)],
            # Old versions of torch did not save the number of batches of a normalisation, which affects no output.
            [key for key in own if first[key] not in present and not key.endswith("num_batches_tracked")],
            [key for key in entries if key not in own],
            {k: tuple(own[k].shape) for k, value in entries.items() if k in own and value.shape != own[k].shape},
        )


def _plain(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _ends(key: str) -> Iterator[str]:
    """Yield a key, and what follows each of its dots."""
    yield key
    while "." in key:
        key = key.partition(".")[2]
        yield key


def _chosen(places: Sequence[_Place], wanted: str, path: Path, problem: str) -> _Place:
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
            raise ConfigError(f"{path}: the file has no weights called {wanted!r}")
    whole = [each for each in places if each.is_whole]
    if not whole:
        raise ConfigError(f"{problem}: {_difference(max(places, key=lambda each: each.likeness))}")
    if any(not _alike(each, whole[0]) for each in whole[1:]):
        names = [each.name for each in whole if each.name]
        raise ConfigError(
            f"{path} holds {len(whole)} sets of weights that fit the model: "
            f"{', '.join(each.name or 'those of no name' for each in whole)}; choose one, such as {path}:{names[0]}"
        )
    place = min(whole, key=lambda each: len(each.unknown))
    if place.unknown:
        raise ConfigError(f"{problem}: {_difference(place)}")
    return place


def _alike(one: _Place, other: _Place) -> bool:
    """Whether two places hold the same weights."""
    common = one.entries.keys() & other.entries.keys()
    return all(_same(one.entries[key], other.entries[key]) for key in common)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and bool((one.to(torch.float64) == other.to(torch.float64)).all())


def _difference(place: _Place) -> str:
    """Return in which entries a place and the model differ, and what helps."""
    if any("lora_" in key for key in place.unknown):
        return f"{_some(place.unknown)} is of an adapter; merge adapters first, as peft's merge_and_unload does"
    if place.missing and place.unknown:
        return f"it lacks {_some(place.missing)} and has {_some(place.unknown)} instead; {REMEDY}"
    if place.unknown:
        known = [key for key in place.entries if key not in place.unknown]
        return f"{_some(place.unknown)} is not in the model, which has {_some(known)}; {REMEDY}"
    if not place.shapes:
        return f"it lacks {_some(place.missing)}; {REMEDY}"
    key, expected = next(iter(place.shapes.items()))
    shape, more = tuple(place.entries[key].shape), len(place.shapes) - 1
    found = f"{key!r} has shape {shape} and must be {expected}" + (f" ({more} more differ too)" if more else "")
    if all(tuple(place.entries[each].shape[1:]) == other[1:] for each, other in place.shapes.items()):
        found += ", as if for another number of classes"
    return f"{found}; {REMEDY}"


def _fit(state: Params, model: nn.Module, problem: str, path: Path) -> Params:
    """Return the model's distinct entries from a state dict that may use any of the names of a tied tensor."""
    first, own = first_keys(model), model.state_dict()
    fitted: Params = {}
    for key, value in state.items():
        converted = _converted(key, value, own[key], problem, path)
        if not _same(fitted.setdefault(first[key], converted), converted):
            raise ConfigError(f"{problem}: {key!r} is tied to {first[key]!r} and has other values; {REMEDY}")
    if changed := {
        f"{value.dtype} to {own[key].dtype}" for key, value in state.items() if value.dtype != own[key].dtype
    }:
        logger.warning("%s: converted from %s", path, ", ".join(sorted(changed)).replace("torch.", ""))
    fitted |= {key: own[key].cpu() for key in own.keys() - fitted.keys() if key.endswith("num_batches_tracked")}
    return {key: fitted[key] for key in own if first[key] == key}


def _converted(key: str, value: Tensor, expected: Tensor, problem: str, path: Path) -> Tensor:
    """Return an entry in the model's type, on the CPU."""
    kinds = [(each.is_floating_point(), each.is_complex(), each.layout) for each in (value, expected)]
    if kinds[0] != kinds[1] or value.is_quantized:
        found = value.dtype if value.layout == torch.strided else value.layout
        raise ConfigError(f"{problem}: {key!r} is {found} and must be {expected.dtype}; save the model's own weights")
    converted = value.detach().to("cpu", expected.dtype).contiguous()
    if not bool(value.isfinite().all()) and bool(expected.isfinite().all()):  # masks are infinite in the model too
        raise ConfigError(
            f"{path}: {key!r} has values that are not finite; training has diverged, use another checkpoint"
        )
    if bool(value.isfinite().all()) and not bool(converted.isfinite().all()):
        raise ConfigError(
            f"{problem}: {key!r} has values too large for {expected.dtype}; use a wider type in the model"
        )
    return converted


def _some(keys: Sequence[str]) -> str:
    return repr(keys[0]) + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")
