"""A layer and a group of layers, as records."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "norm", "held", "other"]


@dataclass(frozen=True)
class Layer:
    """The parameters and buffers that one module owns, together with those of its parametrisations.

    Parameters
    ----------
    name
        The module's path, e.g. ``layer1.0.conv1``; for an entry of the model itself, the entry's name.
    parameters, statistics
        State-dict keys of parameters that are not frozen, and of running statistics and held weights, in the model's
        order; a tied tensor has its first one only.
    size
        Bytes of parameters and statistics.
    others
        Keys of floating-point buffers that are no statistics, such as the vectors of a spectral norm, a mask or a
        hidden state. They are the client's: never averaged, sent or counted, and mixed only where whole models are.
        Integer buffers are not included: they are not mixed either.
    """

    name: str
    kind: Kind
    parameters: tuple[str, ...]
    statistics: tuple[str, ...]
    size: int
    others: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """State-dict keys of what travels: parameters and statistics."""
        return self.parameters + self.statistics


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


@dataclass(frozen=True)
class Head:
    """The layers that give the logits, or why they are not known."""

    layers: tuple[str, ...] = ()
    problem: str = ""
