"""The bytes that travel in a round, counted in the messages, by client and layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Array, Message
from torch import nn

from fedsim.models.adapters import Factors, factors_of
from fedsim.models.layers import Layers
from fedsim.models.params import Params
from fedsim.strategy import messages
from fedsim.strategy.hooks import Hooks

Arrays = Mapping[str, Array]
OUTSIDE = "-"  # entries of a set that belong to no layer


def layer_bytes(strategy: Hooks, params: Params) -> dict[str, int]:
    """Return the bytes of each layer as it travels, in the order of the layers.

    Parameters
    ----------
    params
        Model of the run, all entries.
    """
    return {name: sum(params[key].nbytes for key in strategy.keys((name,))) for name in strategy.layers.names}


def upload_bytes(strategy: Hooks, params: Params) -> dict[str, int]:
    """Return the bytes of each layer as it travels to the server, in the order of the layers.

    Parameters
    ----------
    params
        Model of the run, all entries.
    """
    return layer_bytes(strategy, messages.narrowed(params) if strategy.upload_precision == "bfloat16" else params)


def layers_of_factors(layers: Layers, factors: Sequence[Factors]) -> dict[str, Factors]:
    """Return the layers that are factors of adapters, by name."""
    keys = {key: each for each in factors for key in (each.first, each.second)}
    return {name: each for key, each in keys.items() if (name := layers.find(key)) is not None}


class Traffic:
    """Bytes of the messages of one round; probes, and messages for evaluation, do not count.

    Parameters
    ----------
    model
        The model: where clients' ranks differ, the rows of its factors beyond a client's own are 0 and do not count.
    """

    def __init__(self, layers: Layers, model: nn.Module | None = None) -> None:
        self._layers = layers
        self._factors = layers_of_factors(layers, factors_of(model)) if model is not None else {}
        self._bytes: dict[tuple[int, str, str], dict[str, int]] = {}
        # Clients that take the same layers share one record, which is measured once. It is held so that no other
        # record can have its identity.
        self._measured: dict[int, tuple[Arrays, dict[str, int]]] = {}

    def count(self, client: int, direction: str, message: Message) -> None:
        """Add the bytes of a message to or from a client: layers of the model, and sets of the method."""
        records = {messages.MODEL: messages.arrays_of(message.content, messages.ARRAYS)}
        for name, record in (records | messages.sets_of(message.content)).items():
            sizes = self._shared_sizes(record) if direction == "down" else self._sizes(record)
            for layer, whole in sizes.items():
                each = self._factors.get(layer) if name == messages.MODEL else None
                size = each.bytes_of(client, whole) if each else whole
                self._bytes.setdefault((client, name, layer), {"down": 0, "up": 0})[direction] += size

    def rows(self, server_round: int) -> list[dict[str, Any]]:
        """Return one row per client, set and layer, in the order of the layers; entries in no layer come last.

        The layers of the model are in the set ``model``; the layer of other entries of a set is ``-``.
        """
        order = {name: position for position, name in enumerate(self._layers.names)}

        def place(counted: tuple[tuple[int, str, str], dict[str, int]]) -> tuple[int, bool, str, int]:
            client, name, layer = counted[0]
            return client, name != messages.MODEL, name, order.get(layer, len(order))

        return [
            {"round": server_round, "client": client, "set": name, "layer": layer, **entry}
            for (client, name, layer), entry in sorted(self._bytes.items(), key=place)
        ]

    def _shared_sizes(self, record: Arrays) -> dict[str, int]:
        if id(record) not in self._measured:
            self._measured[id(record)] = record, self._sizes(record)
        return self._measured[id(record)][1]

    def _sizes(self, record: Arrays) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for key, array in record.items():
            layer = self._layers.find(key) or OUTSIDE
            sizes[layer] = sizes.get(layer, 0) + messages.size_bytes(array)
        return sizes
