"""Clients send only the layers that have moved far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from fedsim.models.averaging import mean_of_present
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, Strategy


class DriftGated(Strategy):
    """Average each layer over the clients in which it has moved far: FL4Health's dynamic layer exchange.

    Parameters
    ----------
    select
        A client sends the layers whose drift is at least ``threshold``, or the ``share`` of them that drifted most.
    threshold
        Least norm of a layer's change in the client's training.
    share
        Of the layers, rounded up.
    normalise
        Whether a norm is divided by the number of the layer's elements.
    largest
        Whether layers are sent that drifted much, or those that drifted little.

    Raises
    ------
    ValueError
        If ``threshold`` is negative or ``share`` is not in (0, 1].

    References
    ----------
    Dynamic layer exchange of FL4Health, github.com/VectorInstitute/FL4Health (no paper, not on arXiv).

    Notes
    -----
    A layer is a module's weight and bias together; FL4Health ranks each tensor by itself, running statistics too, and
    does not send what is exactly at the threshold. A client keeps its own value of a layer until somebody sends it, and
    a layer that nobody has sent stays as it is on the server.
    """

    partial = True

    def __init__(
        self,
        model: nn.Module,
        select: Literal["threshold", "share"] = "share",
        threshold: float = 0.0,
        share: float = 0.5,
        normalise: bool = True,
        largest: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        if threshold < 0:
            raise ValueError(f"threshold = {threshold} must be at least 0; 0 sends every layer")
        if not 0 < share <= 1:
            raise ValueError(f"share = {share} must be greater than 0 and at most 1; 1 sends every layer")
        entries = {name: self._keys((name,)) for name in self.layers.names}
        parameters = {name: self.layers[name].parameters for name in self.layers.names}
        # A product such as 0.07 * 100 is a little more than its value.
        count = math.ceil(share * len(self.layers) - 1e-9) if select == "share" else None
        self._rule = Drift(entries, parameters, threshold, count, normalise, largest)

    def kept(self, server_round: int) -> LayerGroup:
        """Keep all layers: any may be one that nobody sends."""
        return self.layers.group("all")

    def client_rule(self) -> ClientRule:
        """Return the rule that chooses the layers."""
        return self._rule

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Average each layer over those that have sent it, weighted by their examples."""
        members = [update.shared for update in updates]
        return mean_of_present(members, [update.num_examples for update in updates], self.precision)


@dataclass(frozen=True)
class Drift(ClientRule):
    """Sends some layers only, by how far they have moved.

    Parameters
    ----------
    entries, parameters
        Keys of each layer that travel, and those of them that are trained.
    count
        How many layers to send; by the threshold if not given.
    """

    entries: Mapping[str, tuple[str, ...]]
    parameters: Mapping[str, tuple[str, ...]]
    threshold: float
    count: int | None
    normalise: bool
    largest: bool

    def finish(self, local: Local, started: Local) -> Finished:
        """Send the chosen layers."""
        drift = {name: self._drift(keys, local.params, started.params) for name, keys in self.parameters.items()}
        if self.count is None:
            chosen = [name for name, norm in drift.items() if (norm >= self.threshold) == self.largest]
        else:
            chosen = sorted(drift, key=lambda name: drift[name], reverse=self.largest)[: self.count]
        return Finished(local.params, {key: local.params[key] for name in chosen for key in self.entries[name]})

    def _drift(self, keys: Sequence[str], params: Params, before: Params) -> float:
        squares = sum(float((params[key] - before[key]).double().square().sum()) for key in keys)
        elements = sum(params[key].numel() for key in keys) if self.normalise else 1
        return math.sqrt(squares) / max(1, elements)
