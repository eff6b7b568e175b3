"""Layers are averaged where a measurement says that it does not hurt."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from fedsim.errors import RunError
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Count, Measurable, NonNegative, Option, PositiveShare, Strategy


class BarrierGated(Strategy):
    """Average only layers whose measured barrier, or drift, says that averaging them does not hurt.

    In every ``every``-th round, from the first on, the clients send all layers that may be averaged. From then on a
    layer is averaged while what is measured of it is at most ``threshold``; all are before. The barrier of a layer is
    by how many nats a client's loss rises, in the mean over the clients, if it gets the average's layer in the place of
    its own; its drift is the root mean square distance of the clients' layers from their average, divided by the
    average's norm.

    References
    ----------
    Uses the layer-wise barriers of Adilova et al. 2024, arXiv 2307.06966; drift is what Lee et al. 2023, FedLAMA,
    arXiv 2110.10302, decide by.

    Notes
    -----
    The measurement has a price, which is counted: the layers that are sent for it besides those that are averaged; for
    barriers on ``clients`` also the average of all layers down, and a forward pass for each layer and example. No
    client trains on the validation data that barriers are measured on, and none is tested on them.
    """

    among: str = Option("all", "Layer group that may be averaged; all others stay personal.")
    measure: Literal["barrier", "drift"] = Option("barrier", "What decides: a barrier, or a drift.")
    on: Literal["clients", "server"] = Option(
        "clients", "Data of barriers: each client's validation data, or a sample of all of them that the server holds."
    )
    threshold: float = Option(0.05, "Threshold in nats for barriers, relative for drift.")
    hysteresis: NonNegative = Option(0.0, "A layer closes above threshold + hysteresis and opens at the difference.")
    budget: PositiveShare = Option(
        1.0,
        "Share of the model's bytes that a client may send where nothing is measured; the lowest values come first.",
    )
    every: Count = Option(5, "Rounds from one measurement to the next.")
    examples: Count = Option(100, "Validation examples at most: of each client, or of the server's set.")

    def prepare(self) -> None:
        self.candidates = self.layers.group(self.among)
        if not len(self.candidates):
            raise ValueError(f"among = {self.among!r} holds no layer; local averages nothing")
        count = len(self.candidates)
        values = torch.full((count,), -math.inf, dtype=torch.float64)
        self.memory = {"values": values, "open": torch.ones(count, dtype=torch.bool)}
        self.barriers: Mapping[str, float] = {}

    def shared(self, server_round: int) -> LayerGroup:
        if not self._is_due(server_round):
            return self._open
        # The server can only evaluate whole models.
        return self.layers.group("all") if (self.measure, self.on) == ("barrier", "server") else self.candidates

    def kept(self, server_round: int) -> LayerGroup:
        # Also what clients send to be measured only.
        return LayerGroup("kept", tuple(name for name in self.layers.names if name not in self._open))

    def measurable(self, server_round: int) -> Measurable | None:
        if self.measure != "barrier" or not self._is_due(server_round):
            return None
        return Measurable(self.on, self.candidates, self.examples)

    def take_barriers(self, server_round: int, barriers: Mapping[str, float]) -> None:
        self.barriers = barriers

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        averaged, gate = self.average(updates), set(self.keys(self._open))
        if self._is_due(server_round):  # which decides the layers from the next round on
            self._decide(self._barriers() if self.measure == "barrier" else self._drift(updates, averaged))
        return {key: value for key, value in averaged.items() if key in gate}

    def _is_due(self, server_round: int) -> bool:
        return (server_round - 1) % self.every == 0

    @property
    def _open(self) -> LayerGroup:
        """The open layers, those with the lowest values first, as long as the budget lasts."""
        left, chosen = round(self.budget * sum(layer.size for layer in self.layers)), set()
        measured = zip(self.candidates, self.memory["values"].tolist(), self.memory["open"].tolist(), strict=True)
        for name, _, is_open in sorted(measured, key=lambda each: each[1]):
            if is_open and self.layers[name].size <= left:
                chosen.add(name)
                left -= self.layers[name].size
        return LayerGroup("open", tuple(name for name in self.layers.names if name in chosen))

    def _barriers(self) -> Mapping[str, float]:
        if not self.barriers:
            raise RunError("no barriers were measured for barrier_gated; 'fedsim run' does, or use measure = 'drift'")
        return self.barriers

    def _decide(self, values: Mapping[str, float]) -> None:
        measured = torch.tensor([values[name] for name in self.candidates], dtype=torch.float64)
        margin = [self.hysteresis if is_open else -self.hysteresis for is_open in self.memory["open"].tolist()]
        limit = self.threshold + torch.tensor(margin, dtype=torch.float64)
        self.memory = {"values": measured, "open": measured <= limit}

    def _drift(self, updates: Sequence[ClientUpdate], average: Params) -> dict[str, float]:
        total = sum(update.num_examples for update in updates)
        drift = {}
        for name in self.candidates:
            keys = self.layers[name].parameters
            size = sum(float(average[key].double().square().sum()) for key in keys)
            spread = sum(
                update.num_examples / total * float((update.shared[key].double() - average[key]).square().sum())
                for update in updates
                for key in keys
            )
            drift[name] = math.sqrt(spread / size) if size else math.inf
        return drift
