"""Layers of a model, and the small language that names groups of them."""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor, nn

from fedsim.models.norms import NORM_TYPES
from fedsim.models.params import first_keys

Kind = Literal["linear", "norm", "other"]


@dataclass(frozen=True)
class Layer:
    """The parameters and buffers that one module owns: weight and bias together.

    Parameters
    ----------
    name
        The module's path, e.g. ``layer1.0.conv1``; for an entry of the model itself, the entry's name.
    parameters, buffers
        State-dict keys, in the model's order; a tied tensor has its first one only. Integer buffers are not included:
        they are never averaged, sent or counted.
    size
        Bytes of all parameters and buffers.
    """

    name: str
    kind: Kind
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    size: int

    @property
    def keys(self) -> tuple[str, ...]:
        """State-dict keys of parameters and buffers."""
        return self.parameters + self.buffers


@dataclass(frozen=True)
class LayerGroup:
    """A named set of layers that move together; layers in the model's order."""

    name: str
    layers: tuple[str, ...]

    def __contains__(self, layer: str) -> bool:
        return layer in self.layers

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


class Layers:
    """All layers of a model, from its input to its output.

    Every floating-point tensor of the state dict is in exactly one layer, under the first of its keys. A module whose
    first entry is tied to another module's belongs to that module's layer, its bias included.

    Parameters
    ----------
    head
        Name of the layer that holds the classifier, if there is one.
    aliases
        Maps each further state-dict key of a tied tensor to its first. Loading a state dict writes the tensor once for
        each of its keys, so what is loaded must hold the same value under all of them.
    """

    def __init__(
        self, layers: Iterable[Layer], head: str | None = None, aliases: Mapping[str, str] | None = None
    ) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self._head = head
        self.aliases = dict(aliases or {})
        self._of_key = {key: layer.name for layer in self for key in layer.keys}
        self._of_key |= {alias: self._of_key[key] for alias, key in self.aliases.items()}
        self._groups: dict[str, LayerGroup] = {}

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return the layers of ``model``, grouped by the module that owns an entry; the last linear one is the head."""
        modules = dict(model.named_modules(remove_duplicate=False))
        entries = {key: value for key, value in model.state_dict(keep_vars=True).items() if value.is_floating_point()}
        first_key = first_keys(model)
        aliases: dict[str, str] = {}
        layer_of: dict[str, str] = {}
        owned: dict[str, dict[str, Tensor]] = {}
        for key, value in entries.items():
            first = first_key[key]
            owner = _owner(key)
            name = layer_of.setdefault(owner, layer_of.get(_owner(first), owner))
            if first == key:
                owned.setdefault(name, {})[key] = value
            else:
                aliases[key] = first
        linear = [layer_of[owner] for owner in layer_of if isinstance(modules.get(owner), nn.Linear)]
        parameter_keys = {key for key, _ in model.named_parameters()}
        return cls(
            (
                _layer(name, held, "linear" if name in linear else _kind(modules.get(name)), parameter_keys)
                for name, held in owned.items()
            ),
            linear[-1] if linear else None,
            aliases,
        )

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

    def of_key(self, key: str) -> str:
        """Return the name of the layer that holds the state-dict entry ``key``, which may be an alias."""
        return self._of_key[key]

    def find(self, key: str) -> str | None:
        """Return what `of_key` does, or None for a key that no layer holds."""
        return self._of_key.get(key)

    def keys(self, group: Iterable[str], *, buffers: bool = True) -> tuple[str, ...]:
        """Return the floating-point state-dict keys of the layers named, with or without buffers."""
        chosen = (self._layers[name] for name in group)
        return tuple(key for layer in chosen for key in (layer.keys if buffers else layer.parameters))

    def group(self, expression: str) -> LayerGroup:
        """Return the layers that an expression of the layer language names.

        Parameters
        ----------
        expression
            ``all``, ``none``, ``body``, ``head``, ``norm``, ``first:2``, ``last:3``, a layer's name or a
            glob over names (``layer4.*``); ``a | b`` for a union, ``!a`` for a complement, ``a - b`` for a
            difference, and parentheses. ``!`` binds most tightly, the others group from the left.

        Raises
        ------
        ValueError
            If the expression cannot be parsed, or one of its patterns matches nothing.
        """
        if expression not in self._groups:  # requested once per client and round
            chosen = _Parser(self, expression).parse()
            self._groups[expression] = LayerGroup(expression, tuple(name for name in self._layers if name in chosen))
        return self._groups[expression]

    def pattern(self, pattern: str) -> set[str]:
        """Return the layers that match a single pattern, without operators."""
        names = self.names
        if pattern in ("all", "none"):
            return set(names if pattern == "all" else ())
        if pattern in ("head", "body"):
            if self._head is None:
                raise ValueError(f"{pattern!r} needs a linear layer, and the model has none; {self._remedy()}")
            return {self._head} if pattern == "head" else set(names) - {self._head}
        if pattern == "norm":
            matched = {layer.name for layer in self if layer.kind == "norm"}
        elif match := re.fullmatch(r"(first|last):(\d+)", pattern):
            count = int(match[2])
            if not 1 <= count <= len(names):
                raise ValueError(f"{pattern!r} must name from 1 to {len(names)} layers; {self._remedy()}")
            matched = set(names[:count] if match[1] == "first" else names[-count:])
        else:
            matched = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not matched:
            raise ValueError(f"layer pattern {pattern!r} matches nothing; {self._remedy()}")
        return matched

    def _remedy(self) -> str:
        return "layers are: " + ", ".join(self.names)


def _owner(key: str) -> str:
    """Return the path of the module that owns an entry; for an entry of the model itself, the entry's name."""
    return key.rpartition(".")[0] or key


def _kind(module: nn.Module | None) -> Kind:
    if isinstance(module, nn.Linear):
        return "linear"
    # torchvision's and detectron2's frozen batch normalisation are other classes, which take a second to import.
    if isinstance(module, NORM_TYPES) or type(module).__name__.startswith("FrozenBatchNorm"):
        return "norm"
    return "other"


def _layer(name: str, entries: Mapping[str, Tensor], kind: Kind, parameter_keys: set[str]) -> Layer:
    return Layer(
        name=name,
        kind=kind,
        parameters=tuple(key for key in entries if key in parameter_keys),
        buffers=tuple(key for key in entries if key not in parameter_keys),
        size=sum(value.numel() * value.element_size() for value in entries.values()),
    )


class _Parser:
    """Recursive descent over ``sum := term (("|" | "-") term)*``, ``term := "!" term | "(" sum ")" | pattern``."""

    # A minus is an operator only between spaces: module names may contain one.
    TOKEN = re.compile(r"\s*(?:(?P<op>[()|!]|(?<=\s)-(?=\s))|(?P<pattern>[^\s()|!]+))")

    def __init__(self, layers: Layers, expression: str) -> None:
        self.layers = layers
        self.expression = expression
        self.tokens = [match[0].strip() for match in self.TOKEN.finditer(expression)]

    def parse(self) -> set[str]:
        chosen = self.sum()
        if self.tokens:
            raise self.error(f"{self.tokens[0]!r} is left over")
        return chosen

    def sum(self) -> set[str]:
        chosen = self.term()
        while self.tokens and self.tokens[0] in ("|", "-"):
            operator, right = self.tokens.pop(0), self.term()
            chosen = chosen | right if operator == "|" else chosen - right
        return chosen

    def term(self) -> set[str]:
        token = self.tokens.pop(0) if self.tokens else ""
        if token == "!":
            return set(self.layers.names) - self.term()
        if token == "(":
            chosen = self.sum()
            if not self.tokens or self.tokens.pop(0) != ")":
                raise self.error("a closing parenthesis is missing")
            return chosen
        if token in ("", "|", "-", ")"):
            raise self.error("a layer pattern is missing" + (f" before {token!r}" if token else ""))
        return self.layers.pattern(token)

    def error(self, problem: str) -> ValueError:
        return ValueError(
            f"layer group {self.expression!r} cannot be read: {problem}; "
            "write for instance 'body', 'conv1 | head', '!head' or 'all - norm'"
        )
