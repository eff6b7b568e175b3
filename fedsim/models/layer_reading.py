"""What the layers of a model are: which module owns each tensor, the order of use, and what gives the logits."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from fedsim.models.frozen import is_norm
from fedsim.models.held import is_held
from fedsim.models.layer import Head, Kind, Layer
from fedsim.models.params import moves
from fedsim.models.usage import Usage, usage_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What was found in a model; the fields are those of `fedsim.models.layers.Layers`."""

    layers: tuple[Layer, ...] = ()
    head: Head = field(default_factory=Head)
    aliases: Mapping[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    frozen_keys: frozenset[str] = frozenset()
    order: Literal["use", "registration"] = "registration"


def usage_on(model: nn.Module, inputs: Tensor | None) -> Usage | None:
    """Return how a model uses its tensors on a few inputs, or None if there are none or it fails on them."""
    if inputs is None:
        return None
    try:
        return usage_of(model, inputs[:2])
    except Exception as error:  # a model's code may raise anything
        logger.info("layers are in the order of registration: the model fails on inputs (%s)", error)
        return None


def read_layers(
    model: nn.Module, usage: Usage | None, frozen_keys: frozenset[str], head: Sequence[str] | None = None
) -> Found:
    """Return the layers of a model, grouped by the module that owns an entry.

    Parameters
    ----------
    usage
        How the model uses its tensors, if known.
    head
        The layers that give the logits, if they were named.

    Raises
    ------
    ValueError
        If the head that was named does not give as many outputs as the model has.
    """
    entries = {
        key: value
        for key, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and moves(value)
    }
    owned, aliases, layer_of = _owned(entries)
    modules = dict(model.named_modules(remove_duplicate=False))
    linear = [layer_of[owner] for owner in layer_of if isinstance(modules.get(owner), nn.Linear)]
    parameters = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    layers = {}
    for name, keys in owned.items():
        kind: Kind = "linear" if name in linear else "norm" if is_norm(modules.get(name)) else "other"
        kind = "held" if is_held(modules.get(name)) else kind
        layers[name] = _layer(name, kind, {key: entries[key] for key in keys if key not in frozen_keys}, parameters)
    if usage is not None:
        layers = {name: layers[name] for name in _in_order_of_use(layers, owned, usage.keys)}
    moving = tuple(layer for layer in layers.values() if layer.keys or layer.others)
    if head is None:
        trained = {name for name, layer in layers.items() if layer.parameters}
        found_head = _last_linear(linear) if usage is None else _head(usage, owned, entries, trained)
    else:
        found_head = Head(tuple(head))
        named = owned[head[0]] if len(head) == 1 else []
        if named and usage is not None and not usage.can_give_logits(named, partial(_shape_of, entries)):
            raise ValueError(
                f"head: {head[0]} does not give the model's {usage.outputs} outputs; name the layer that does"
            )
    return Found(
        layers=moving,
        head=found_head,
        aliases={alias: key for alias, key in aliases.items() if key not in frozen_keys},
        frozen=tuple(name for name, layer in layers.items() if layer not in moving),
        frozen_keys=frozen_keys,
        order="registration" if usage is None else "use",
    )


def owner_of(key: str) -> str:
    """Return the path of the module that owns an entry; for an entry of the model itself, the entry's name.

    What a module's parametrisations own is the module's.
    """
    module, parametrised, rest = f".{key}".partition(".parametrizations.")
    if parametrised:
        return module[1:] or rest.partition(".")[0]
    return key.rpartition(".")[0] or key


def _owned(entries: Mapping[str, Tensor]) -> tuple[dict[str, list[str]], dict[str, str], dict[str, str]]:
    """Return the first keys of each layer's tensors, each further key's first, and the layer of each owner."""
    seen: dict[int, str] = {}
    aliases: dict[str, str] = {}
    layer_of: dict[str, str] = {}
    owned: dict[str, list[str]] = {}
    for key, value in entries.items():
        first = seen.setdefault(id(value), key)
        owner = owner_of(key)
        name = layer_of.setdefault(owner, layer_of.get(owner_of(first), owner))
        if first == key:
            owned.setdefault(name, []).append(key)
        else:
            aliases[key] = first
    return owned, aliases, layer_of


def _layer(name: str, kind: Kind, entries: Mapping[str, Tensor], parameters: Collection[str]) -> Layer:
    """Return a layer of the tensors given, which are not frozen."""
    own = tuple(key for key in entries if key in parameters)
    buffers = [key for key in entries if key not in parameters]
    travels = kind in ("norm", "held")
    statistics = tuple(key for key in buffers if travels or key.rpartition(".")[2].startswith("running_"))
    return Layer(
        name=name,
        kind=kind,
        parameters=own,
        statistics=statistics,
        size=sum(entries[key].nbytes for key in own + statistics),
        others=tuple(key for key in buffers if key not in statistics),
    )


def _in_order_of_use(layers: Iterable[str], owned: Mapping[str, Sequence[str]], used: Sequence[str]) -> list[str]:
    """Return the layers in the order of their first use; one that is not used follows the one registered before it."""
    layer_of = {key: name for name, keys in owned.items() for key in keys}
    ordered = list(dict.fromkeys(layer_of[key] for key in used if key in layer_of))
    before = ""
    for name in layers:
        if name not in ordered:
            ordered.insert(ordered.index(before) + 1 if before else 0, name)
        before = name
    return ordered


def _last_linear(linear: Sequence[str]) -> Head:
    return Head((linear[-1],)) if linear else Head(problem="the model has no linear layer")


def _head(
    usage: Usage, owned: Mapping[str, Sequence[str]], entries: Mapping[str, Tensor], trained: Collection[str]
) -> Head:
    """Return the layer whose product with a weight gives the logits, if there is exactly one.

    Frozen layers count only if all of them are frozen: the base of an adapter is no layer that could move.
    """
    layer_of = {key: name for name, keys in owned.items() for key in keys}
    found: dict[str, bool] = {}
    for keys, has_all in usage.sources_of_logits(partial(_shape_of, entries)):
        for name in dict.fromkeys(layer_of[key] for key in keys if key in layer_of):
            found[name] = has_all
    found = {name: has_all for name, has_all in found.items() if name in trained} or found
    if not found:
        return Head(problem="the logits come from no product with a layer's weight")
    if len(found) > 1:
        return Head(problem=f"the logits come from {' and '.join(name for name in owned if name in found)}")
    [(name, has_all)] = found.items()
    if not has_all:
        return Head(problem=f"the logits come from {name}, which does not give one output for each")
    return Head((name,))


def _shape_of(entries: Mapping[str, Tensor], key: str) -> torch.Size:
    return entries[key].shape if key in entries else torch.Size()
