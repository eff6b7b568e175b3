"""Where in the content of a checkpoint the weights of a model may lie: at any depth, and under any prefix."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from fedsim.models.asymmetry import FixedEntries, fixed_entries
from fedsim.models.frozen import frozen_keys
from fedsim.models.parametrised import Complex
from fedsim.models.params import Params, first_keys

# Parts of keys that wrappers add, anywhere: torch.compile, Fabric, FSDP, activation checkpointing.
WRAPPERS = {"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
DEEPEST = 5  # levels of dicts and lists in which weights are looked for


@dataclass(frozen=True)
class Place:
    """Entries of a file under one prefix, by the model's keys where it has them.

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


def places_of(content: Any, model: nn.Module, skip: Container[str] = ()) -> list[Place]:
    """Return the places in a file that have keys of the model; if none has, those of any tensors.

    Parameters
    ----------
    skip
        Keys of the model whose entries are left out and not missed.

    Raises
    ------
    ValueError
        If a tensor there has no values, as those of models that were built on the device ``meta``.
    """
    states, names = list(_states(content)), _names(model)
    places = [place for state in states for place in _places(*state, model, names, skip)]
    common = _common_prefix(list(names))
    if common and not any(place.is_whole for place in places):
        # A file of the part that the model is a wrapper of.
        inner = {name.removeprefix(common): key for name, key in names.items()}
        inside = [place for state in states for place in _places(*state, model, inner, skip)]
        places = [place for place in inside if place.is_whole] or places
    for place in places:
        if empty := [key for key, value in place.entries.items() if value.is_meta]:
            raise ValueError(
                f"{empty[0]!r} is on the device 'meta', without values; save the model once they are loaded"
            )
    return places


def is_optional(key: str) -> bool:
    """Whether a file may lack an entry of a normalisation: old versions of torch did not save it."""
    return key.endswith("num_batches_tracked")  # which affects no output


def _states(content: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, Params]]:
    """Yield the dicts with tensors at any depth, by their place."""
    inner = dict(enumerate(content)) if isinstance(content, list | tuple) else content
    if not isinstance(inner, Mapping) or depth > DEEPEST:
        return
    arrays = {str(key): _tensor(value) for key, value in inner.items()}
    found = {key: value for key, value in arrays.items() if value is not None}
    if found and inner is content:
        yield where, found
    for key, value in inner.items():
        yield from _states(value, f"{where}/{key}".removeprefix("/"), depth + 1)


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(value.copy())
    return value if isinstance(value, Tensor) else None


def _names(model: nn.Module) -> dict[str, str]:
    """Return the model's keys by the names that they may have in a file, without what wrappers add."""
    names = {_plain(key): key for key in model.state_dict()}
    for path, module in model.named_modules(remove_duplicate=False):
        if not parametrize.is_parametrized(module):
            continue
        for name, own in module.parametrizations.items():
            key = f"{path}.parametrizations.{name}.original".removeprefix(".")
            plain = _plain(f"{path}.{name}".removeprefix("."))
            if isinstance(own[0], Complex):
                names[plain] = f"{key}0"
            elif isinstance(own[0], FixedEntries):
                names[plain] = key
            elif isinstance(own[0], _WeightNorm):  # the older form's
                names |= {f"{plain}_g": f"{key}0", f"{plain}_v": f"{key}1"}
    return names


def _places(
    where: str, state: Params, model: nn.Module, names: Mapping[str, str], skip: Container[str]
) -> Iterator[Place]:
    """Yield the entries under each prefix after which the model's keys follow, or all if there is none."""
    first, own, frozen = first_keys(model), model.state_dict(), frozen_keys(model)
    fixed = {
        name: each for name, key in names.items() for at, each in fixed_entries(model).items() if key == at != name
    }
    keys = {_plain(key): key for key in state}
    prefixes = dict.fromkeys(key[: len(key) - len(end)] for key in keys for end in _ends(key) if end in names)
    for prefix in prefixes or [""]:
        inside = {key.removeprefix(prefix): state[old] for key, old in keys.items() if key.startswith(prefix)}
        found = {names.get(key, key): _trained(value, fixed.get(key)) for key, value in inside.items()}
        entries = {key: value for key, value in found.items() if key not in skip}
        for key, value in entries.items():
            if value.is_complex() and key.endswith(".original0") and key in own:  # of `parametrise_`
                entries[key] = torch.view_as_real(value.resolve_conj())
        present = {first[key] for key in entries if key in first}
        yield Place(
            where=where,
            prefix=prefix,
            entries=entries,
            outside=[old for key, old in keys.items() if not key.startswith(prefix)],
            missing=[
                key for key in own if not (first[key] in present or key in frozen or key in skip or is_optional(key))
            ],
            unknown=[key for key in entries if key not in own],
            shapes={k: tuple(own[k].shape) for k, v in entries.items() if k in own and v.shape != own[k].shape},
        )


def _trained(value: Tensor, fixed: FixedEntries | None) -> Tensor:
    """Return what is trained of a plain weight of an asymmetric model: 0 where it has the model's fixed values."""
    if fixed is None or value.shape != fixed.fixed.shape:
        return value
    return value - fixed.fixed.to(value)


def _plain(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _ends(key: str) -> Iterator[str]:
    """Yield a key, and what follows each of its dots."""
    yield key
    while "." in key:
        key = key.partition(".")[2]
        yield key


def _common_prefix(names: Sequence[str]) -> str:
    """Return the modules that all names begin with, ending with a dot."""
    prefix = ""
    while len(begins := {name.removeprefix(prefix).partition(".")[0] for name in names}) == 1:
        longer = f"{prefix}{begins.pop()}."
        if not all(name.startswith(longer) for name in names):
            break
        prefix = longer
    return prefix
