"""What a strategy wants to have measured before it aggregates."""

from dataclasses import dataclass
from typing import Literal

from fedsim.models.layers import LayerGroup


@dataclass(frozen=True)
class Measurable:
    """What a strategy wants to know of a round's models as uploaded: the barrier of each layer.

    Parameters
    ----------
    on
        Each client's own validation data (``clients``), or a sample of those of all clients (``server``).
    layers
        Layers that are measured.
    examples
        Largest number of examples of each client, or in the sample.
    """

    on: Literal["clients", "server"]
    layers: LayerGroup
    examples: int
