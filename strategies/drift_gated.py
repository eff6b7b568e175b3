"""Clients send only the layers that have moved far."""

import math
from collections.abc import Sequence
from typing import Literal

from fedsim.models.averaging import mean_of_present
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Finished, Local, NonNegative, Option, PositiveShare, Strategy


class Drift(ClientRule):
    """Sends some layers only, by how far they have moved."""

    select: str
    threshold: float
    share: float
    normalise: bool
    largest: bool
    buffers: str

    @property
    def count(self) -> int:
        """Number of layers to send where ``select`` is ``share``; 0.07 * 100 is a little more than 7."""
        return math.ceil(self.share * len(self.layers) - 1e-9)

    def finish(self, local: Local, started: Local) -> Finished:
        drift = {layer.name: self._drift(layer.parameters, local.params, started.params) for layer in self.layers}
        if self.select == "threshold":
            chosen = [name for name, norm in drift.items() if (norm >= self.threshold) == self.largest]
        else:
            chosen = sorted(drift, key=lambda name: drift[name], reverse=self.largest)[: self.count]
        keys = self.layers.keys(chosen, buffers=self.buffers == "shared")
        return Finished(local.params, {key: local.params[key] for key in keys})

    def _drift(self, keys: Sequence[str], params: Params, before: Params) -> float:
        squares = sum(float((params[key] - before[key]).double().square().sum()) for key in keys)
        return math.sqrt(squares) / max(1, sum(params[key].numel() for key in keys) if self.normalise else 1)


class DriftGated(Strategy):
    """Average each layer over the clients in which it has moved far: FL4Health's dynamic layer exchange.

    References
    ----------
    Dynamic layer exchange of FL4Health, github.com/VectorInstitute/FL4Health (no paper, not on arXiv).

    Notes
    -----
    A layer is a module's weight and bias together; FL4Health ranks each tensor by itself, running statistics too, and
    does not send what is exactly at the threshold. A client keeps its own value of a layer until some client sends it,
    and a layer that no client has sent stays as it is on the server.
    """

    client_rule = Drift
    partial = True
    select: Literal["threshold", "share"] = Option("share", "Whether a threshold or a share says what is sent.")
    threshold: NonNegative = Option(0.0, "Smallest norm of the change of a layer that is sent; 0 sends every layer.")
    share: PositiveShare = Option(0.5, "Share of the layers that are sent, rounded up.")
    normalise: bool = Option(True, "Whether a norm is divided by the number of the layer's elements.")
    largest: bool = Option(True, "Whether layers are sent that drifted much, or those that drifted little.")

    def prepare(self) -> None:
        sends_all = self.share == 1 if self.select == "share" else self.largest and self.threshold == 0
        self.unplanned = "" if sends_all else "which layers drift far enough to be sent"

    def kept(self, server_round: int) -> LayerGroup:
        return self.layers.group("all")  # any may be one that no client sends

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        members, weights = [update.shared for update in updates], [update.num_examples for update in updates]
        return mean_of_present(members, weights, self.dtype)
