"""Layers of a model, and groups of them."""

import fnmatch
import re
from collections.abc import Iterable, Iterator
from typing import Self

from torch import Tensor, nn

from fedsim.models.frozen import SETTLED, frozen_keys, settle_
from fedsim.models.layer import Layer, LayerGroup
from fedsim.models.layer_language import parse
from fedsim.models.layer_reading import Found, owner_of, read_layers, usage_on

__all__ = ["Layer", "LayerGroup", "Layers", "describe_"]


class Layers:
    """All layers of a model that are not frozen, from its input to its output.

    Every parameter that is not frozen and every floating-point buffer is in exactly one layer, under the first of its
    keys. A module whose first entry is tied to another module's belongs to that module's layer, its bias included.

    Parameters
    ----------
    found
        What was found in the model; nothing for a model without layers.

    Attributes
    ----------
    aliases
        Maps each further state-dict key of a tied tensor to its first. Loading a state dict writes the tensor once for
        each of its keys, so what is loaded must hold the same value under all of them.
    frozen
        Names of the layers whose parameters are all frozen.
    frozen_keys
        State-dict keys of all frozen tensors, each under all its names.
    order
        How the order was found: by the model's ``use`` of its layers on some inputs, or by their ``registration``.
    """

    def __init__(self, found: Found | None = None) -> None:
        found = found or Found()
        self._layers = {layer.name: layer for layer in found.layers}
        self._head = found.head
        self.aliases = dict(found.aliases)
        self.frozen = found.frozen
        self.frozen_keys = found.frozen_keys
        self.order = found.order
        self._of_key = {key: layer.name for layer in self for key in layer.keys + layer.others}
        self._of_key |= {alias: self._of_key[key] for alias, key in self.aliases.items() if key in self._of_key}
        self._groups: dict[str, LayerGroup] = {}

    @classmethod
    def of(cls, model: nn.Module, inputs: Tensor | None = None) -> Self:
        """Return the layers of ``model``: those that it was built with (`describe_`), else what is found now.

        Parameters
        ----------
        inputs
            A few inputs of the model, shape [n, ...], normalised. With them, layers are in the order of their first use
            and the head is what gives the logits; without them, the order is that of registration and the head is the
            last linear layer.
        """
        settled: Self | None = vars(model).get(SETTLED)
        return settled if settled is not None else cls(read_layers(model, usage_on(model, inputs), frozen_keys(model)))

    @classmethod
    def registered(cls, model: nn.Module) -> Self:
        """Return the layers of ``model`` in the order of their registration, as if none were frozen."""
        return cls(read_layers(model, None, frozenset()))

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers.values())

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, name: str) -> Layer:
        return self._layers[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all layers, in the model's order."""
        return tuple(self._layers)

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the layers that give the logits, frozen or not; none if they are not known."""
        return self._head.layers

    def of_key(self, key: str) -> str:
        """Return the name of the layer that holds the state-dict entry ``key``, which may be an alias."""
        return self._of_key[key]

    def find(self, key: str) -> str | None:
        """Return what `of_key` does, or None for a key that no layer holds."""
        return self._of_key.get(key)

    def keys(self, group: Iterable[str], *, buffers: bool = True) -> tuple[str, ...]:
        """Return the state-dict keys of what travels of layers: parameters, with or without running statistics.

        Raises
        ------
        KeyError
            If there is no such layer.
        """
        names = tuple(group)
        if isinstance(group, str) or not self._layers.keys() >= set(names):
            raise KeyError(
                f"{group!r} is no group of layers; give one, such as layers.group('body'), or names among: "
                f"{', '.join(self._layers)}"
            )
        chosen = [self._layers[name] for name in names]
        return tuple(key for layer in chosen for key in (layer.keys if buffers else layer.parameters))

    def group(self, expression: str) -> LayerGroup:
        """Return the layers that an expression of the layer language names.

        Parameters
        ----------
        expression
            ``all``, ``none``, ``body``, ``head``, ``norm``, ``first:2``, ``last:3``, a layer's name or a
            glob over names (``layer4.*``); ``a | b`` for a union, ``!a`` for a complement, ``a - b`` for a
            difference, and parentheses. ``!`` binds most tightly, the others group from the left. ``frozen`` alone
            names the layers that are not among ``all``.

        Raises
        ------
        ValueError
            If the expression cannot be parsed, or one of its patterns matches nothing.
        """
        if expression.strip() == "frozen":
            return LayerGroup("frozen", self.frozen)
        if expression not in self._groups:  # requested once per client and round
            chosen = parse(expression, self.names, self._pattern)
            self._groups[expression] = LayerGroup(expression, tuple(name for name in self.names if name in chosen))
        return self._groups[expression]

    def _pattern(self, pattern: str) -> set[str]:
        """Return the layers that match a single pattern, without operators."""
        names = self.names
        if pattern in ("all", "none"):
            return set(names if pattern == "all" else ())
        if pattern in ("head", "body"):
            return self._head_or_body(pattern)
        if pattern == "norm":
            matched = {layer.name for layer in self if layer.kind == "norm"}
        elif match := re.fullmatch(r"(first|last):(\d+)", pattern):
            count = int(match[2])
            if not 1 <= count <= len(names):
                raise ValueError(f"{pattern!r} must name from 1 to {len(names)} layers; {self._remedy()}")
            matched = set(names[:count] if match[1] == "first" else names[-count:])
        else:
            matched = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not matched and (pattern == "frozen" or fnmatch.filter(self.frozen, pattern)):
            raise ValueError(f"layer pattern {pattern!r} matches only frozen layers, which stay; {self._remedy()}")
        if not matched and pattern == "norm":
            raise ValueError(
                f"layer pattern {pattern!r} matches nothing, as the model has no normalisation that trains; choose one "
                f"that has some, or other layers; {self._remedy()}"
            )
        if not matched:
            raise ValueError(f"layer pattern {pattern!r} matches nothing; {self._remedy()}")
        return matched

    def _head_or_body(self, pattern: str) -> set[str]:
        if not self._head.layers:
            raise ValueError(
                f"{pattern!r} is not known: {self._head.problem}; give [model] head = '<layer>'; {self._remedy()}"
            )
        head = set(self._head.layers) & set(self.names)
        if pattern == "head" and not head:
            raise ValueError(f"'head' is {' | '.join(self._head.layers)}, which is frozen and stays; {self._remedy()}")
        return head if pattern == "head" else set(self.names) - head

    def _remedy(self) -> str:
        return "layers are: " + ", ".join(self.names)


def describe_(model: nn.Module, inputs: Tensor, head: str = "", freeze: str = "") -> Layers:
    """Freeze parts of a model that was just built, and settle for its lifetime what its layers are.

    Parameters
    ----------
    inputs
        As in `Layers.of`.
    head
        Layer expression that names the head (default: what gives the logits).
    freeze
        Layer expression that names the layers to freeze, besides those that are frozen already.

    Raises
    ------
    ValueError
        If an expression cannot be parsed or matches nothing, or every parameter is frozen.
    """
    usage = usage_on(model, inputs)
    every = Layers(read_layers(model, usage, frozenset()))
    frozen = frozen_keys(model)
    if freeze:
        frozen |= _freeze_(model, every, every.group(freeze))
    layers = Layers(read_layers(model, usage, frozen, every.group(head).layers if head else None))
    if not any(layer.parameters for layer in layers):
        raise ValueError("every parameter of the model is frozen; at least one must require a gradient")
    settle_(model, layers)
    return layers


def _freeze_(model: nn.Module, layers: Layers, group: LayerGroup) -> frozenset[str]:
    """Freeze layers, and return the keys of their tensors, with the statistics of normalisations."""
    norms = {layer.name for layer in layers if layer.kind == "norm"} & set(group)
    chosen = set(layers.keys(group)) | {key for key in model.state_dict() if owner_of(key) in norms}
    chosen |= {alias for alias, first in layers.aliases.items() if first in chosen}
    for key, parameter in model.named_parameters():
        if key in chosen:
            parameter.requires_grad_(False)
    return frozenset(chosen)
