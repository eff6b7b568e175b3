"""Layers are averaged where a measurement says that it does not hurt."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from fedsim.errors import RunError
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, Measurable, Strategy


class BarrierGated(Strategy):
    """Average only layers whose measured barrier, or drift, says that averaging them does not hurt.

    In every ``every``-th round, from the first on, the clients send all layers that may be averaged. From then on a
    layer is averaged while what is measured of it is at most ``threshold``; all are before.

    Parameters
    ----------
    among
        Layer group that may be averaged; all others stay personal.
    measure
        ``barrier``: by how many nats a client's loss rises, in the mean over the clients, if it gets the average's
        layer in the place of its own. ``drift``: root mean square distance of the clients' layers from their
        average, divided by the average's norm.
    on
        What barriers are measured on: each client's own validation data (``clients``), or a set that the server holds,
        sampled from the validation data of all clients (``server``). Nobody trains on them, and nobody is tested on
        them.
    threshold
        In nats for barriers, relative for drift.
    hysteresis
        A layer is closed above ``threshold + hysteresis`` and opened again at ``threshold - hysteresis``.
    budget
        Share of the model's bytes that a client may send in a round in which nothing is measured. Open layers with the
        lowest values come first.
    every
        Rounds from one measurement to the next.
    examples
        Validation examples at most: of each client, or of the server's set.

    Raises
    ------
    ValueError
        If an option is out of range, or the group holds nothing.
    RunError
        In an app that does not measure barriers.

    References
    ----------
    Uses the layer-wise barriers of Adilova et al. 2024, arXiv 2307.06966; drift is what Lee et al. 2023, FedLAMA,
    arXiv 2110.10302, decide by.

    Notes
    -----
    The measurement has a price, which is counted: the layers that are sent for it beside those that are averaged; for
    barriers on ``clients`` also the average of all layers down, and a forward pass for each layer and example.
    """

    def __init__(
        self,
        model: nn.Module,
        among: str = "all",
        measure: Literal["barrier", "drift"] = "barrier",
        on: Literal["clients", "server"] = "clients",
        threshold: float = 0.05,
        hysteresis: float = 0.0,
        budget: float = 1.0,
        every: int = 5,
        examples: int = 100,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        if hysteresis < 0:
            raise ValueError(f"hysteresis = {hysteresis} must not be negative; 0 opens and closes at the threshold")
        if not 0 < budget <= 1:
            raise ValueError(f"budget = {budget} must be greater than 0 and at most 1, a share of the model's bytes")
        for name, value in (("every", every), ("examples", examples)):
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        self._among = self.layers.group(among)
        if not len(self._among):
            raise ValueError(f"among = {among!r} holds no layer; local averages nothing")
        self._barrier_on = on if measure == "barrier" else None
        self._threshold, self._hysteresis, self._budget = threshold, hysteresis, budget
        self._every, self._examples = every, examples
        self._values = dict.fromkeys(self._among, -math.inf)
        self._open = dict.fromkeys(self._among, True)
        self._barriers: Mapping[str, float] = {}

    def shared(self, server_round: int) -> LayerGroup:
        """Share what is averaged, and where a measurement is due all that it needs."""
        if not self._is_due(server_round):
            return self._gate
        # The server can only evaluate whole models.
        return self.layers.group("all") if self._barrier_on == "server" else self._among

    def kept(self, server_round: int) -> LayerGroup:
        """Let clients keep what is not averaged, also where they send it to be measured."""
        return LayerGroup("kept", tuple(name for name in self.layers.names if name not in self._gate))

    def measurable(self, server_round: int) -> Measurable | None:
        """Ask for barriers where they are due."""
        if self._barrier_on is None or not self._is_due(server_round):
            return None
        return Measurable(self._barrier_on, self._among, self._examples)

    def take_barriers(self, server_round: int, barriers: Mapping[str, float]) -> None:
        """Take what decides the layers of the next rounds; this round's average is not affected."""
        self._barriers = barriers

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Average the layers that were open when the round began, and decide which are from the next one on."""
        averaged = super().aggregate(server_round, updates)
        gate = set(self._keys(self._gate))
        if self._is_due(server_round):
            self._decide(self._taken() if self._barrier_on else self._drift(updates, averaged))
        return {key: value for key, value in averaged.items() if key in gate}

    def state(self) -> Params:
        """Remember what was measured, and which layers are open."""
        return {
            "values": torch.tensor([self._values[name] for name in self._among], dtype=torch.float64),
            "open": torch.tensor([self._open[name] for name in self._among]),
        }

    def load_state(self, state: Params) -> None:
        """Take back what was measured, and which layers are open."""
        self._values = dict(zip(self._among, state["values"].tolist(), strict=True))
        self._open = dict(zip(self._among, state["open"].tolist(), strict=True))

    def _is_due(self, server_round: int) -> bool:
        return (server_round - 1) % self._every == 0

    @property
    def _gate(self) -> LayerGroup:
        """The open layers, those with the lowest values first, as long as the budget lasts."""
        left = round(self._budget * sum(layer.size for layer in self.layers))
        chosen = set()
        for name in sorted(self._among, key=lambda name: self._values[name]):
            if self._open[name] and self.layers[name].size <= left:
                chosen.add(name)
                left -= self.layers[name].size
        return LayerGroup("open", tuple(name for name in self.layers.names if name in chosen))

    def _taken(self) -> Mapping[str, float]:
        if not self._barriers:
            raise RunError(
                "nobody has measured barriers for barrier_gated; 'fedsim run' does, or use measure = 'drift'"
            )
        return self._barriers

    def _decide(self, values: Mapping[str, float]) -> None:
        for name in self._among:
            value = self._values[name] = values[name]
            limit = self._threshold + (self._hysteresis if self._open[name] else -self._hysteresis)
            self._open[name] = value <= limit

    def _drift(self, updates: Sequence[ClientUpdate], average: Params) -> dict[str, float]:
        total = sum(update.num_examples for update in updates)
        drift = {}
        for name in self._among:
            keys = self.layers[name].parameters
            size = sum(float(average[key].double().square().sum()) for key in keys)
            spread = sum(
                update.num_examples / total * float((update.shared[key].double() - average[key]).square().sum())
                for update in updates
                for key in keys
            )
            drift[name] = math.sqrt(spread / size) if size else math.inf
        return drift
