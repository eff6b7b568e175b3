"""Layers are averaged where a measurement says that it does not hurt."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt

from fedsim.errors import RunError
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import (
    PROBE,
    PROBING,
    Bounds,
    ClientBarrier,
    ClientUpdate,
    Count,
    LocalPlan,
    Measurable,
    NonNegative,
    Option,
    PositiveShare,
    ProbeRule,
    Sets,
    Strategy,
    bounds_of,
)

ON_SERVER = ("barrier", "server")


class GateProbe(ProbeRule):
    """Sends all layers of its probe that the gate looks at: the candidates, or all where the server evaluates them."""

    among: str
    measure: str
    on: str

    def prepare(self) -> None:
        if (self.measure, self.on) == ON_SERVER:
            self.among = "all"


class BarrierGated(Strategy):
    """Average only layers whose measured barrier, or drift, says that averaging them does not hurt.

    All layers are averaged at first. In every ``every``-th round, from the first on, each is measured. It closes where
    averaging it is shown to hurt: the lower confidence bound is above ``threshold``. It then stays with its client, and
    opens where averaging is shown not to hurt: the upper bound is at most ``threshold``. A barrier is the rise of a
    client's loss in nats, in the mean over the clients, if it gets the average's layer in the place of its own; drift
    is the root mean square distance of the clients' layers from their average, divided by the average's norm.

    References
    ----------
    Uses the layer-wise barriers of Adilova et al. 2024, arXiv 2307.06966; drift is what Lee et al. 2023, FedLAMA,
    arXiv 2110.10302, decide by.

    Notes
    -----
    A closed layer drifts, so that its barrier grows because it is closed. While any is closed, clients therefore train
    a second model in a measuring round, the probe, whose candidates all began at the average, and probes are measured.
    The server keeps the mean of their closed layers: the next probes begin there, and so do clients if one opens.

    The price is counted. Where all candidates are open: for barriers on ``clients`` the average of each layer down, a
    loss up, and a forward pass for each layer and example; on the ``server`` all layers up. Where some are closed also
    the probe's training, as much as the round's own, the closed layers down, and the probe's candidates up. Bounds are
    for the mean over the population of clients; a drift has none. No client trains on the validation data that barriers
    are measured on, and none is tested on them.
    """

    client_rule = GateProbe
    unplanned = "which layers close, and what it takes to measure them"
    among: str = Option("all", "Layer group that may be averaged; all others stay personal.")
    measure: Literal["barrier", "drift"] = Option("barrier", "What decides: a barrier, or a drift.")
    on: Literal["clients", "server"] = Option(
        "clients", "Data of barriers: each client's own, or a sample on the server."
    )
    threshold: float = Option(0.05, "Threshold in nats for barriers, relative for drift.")
    confidence: Annotated[float, Ge(0.5), Lt(1)] = Option(
        0.9, "Confidence of a barrier's one-sided bounds over the clients; at 0.5 its mean decides."
    )
    probe: bool = Option(True, "Whether models that began at the average are measured, or the clients' own.")
    hysteresis: NonNegative = Option(0.0, "A layer closes above threshold + hysteresis and opens at the difference.")
    budget: PositiveShare = Option(
        1.0,
        "Share of the model's bytes that a client may send where nothing is measured; the lowest values come first.",
    )
    every: Count = Option(5, "Rounds from one measurement to the next.")
    examples: Count = Option(100, "Validation examples at most: of each client, or of the server's set.")

    def prepare(self) -> None:
        self.candidates = self.layers.group(self.among)
        if not (count := len(self.candidates)):
            raise ValueError(f"among = {self.among!r} holds no layer; local averages nothing")
        self.memory = {"values": torch.full((count,), -math.inf).double(), "open": torch.ones(count).bool()}
        self.barriers: Mapping[str, Sequence[ClientBarrier]] = {}

    def shared(self, server_round: int) -> LayerGroup:
        if not self._is_due(server_round) or self._is_probing(server_round):
            return self._open
        # The server can only evaluate whole models.
        return self.layers.group("all") if (self.measure, self.on) == ON_SERVER else self.candidates

    def kept(self, server_round: int) -> LayerGroup:
        # Also what clients send to be measured only.
        return LayerGroup("kept", tuple(name for name in self.layers.names if name not in self._open))

    def local_plan(self, server_round: int) -> LocalPlan:
        return PROBING if self._is_probing(server_round) else LocalPlan()

    def sets_for(self, server_round: int, client: int) -> Sets:
        return {PROBE: self.memory["average"]} if self._is_probing(server_round) else {}

    def measurable(self, server_round: int) -> Measurable | None:
        if self.measure != "barrier" or not self._is_due(server_round):
            return None
        return Measurable(self.on, self.candidates, self.examples)

    def take_barriers(self, server_round: int, barriers: Mapping[str, Sequence[ClientBarrier]]) -> None:
        self.barriers = barriers

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        averaged, gate = self.average(updates), set(self.keys(self._open))
        if not self._is_due(server_round):
            return averaged
        probes = self.average(updates, of=PROBE) if self._is_probing(server_round) else averaged
        # It decides the layers from the next round on.
        self._decide(self._bounds() if self.measure == "barrier" else self._drift(updates, averaged | probes))
        if self.probe:
            averaged |= {key: probes[key] for key in set(self.keys(self._open)) - gate}
            gate |= set(self.keys(self._open))
            closed = self.keys(name for name in self.candidates if name not in self._open)
            self.memory["average"] = {key: probes[key] for key in closed}
        return {key: value for key, value in averaged.items() if key in gate}

    def _is_due(self, server_round: int) -> bool:
        return (server_round - 1) % self.every == 0

    def _is_probing(self, server_round: int) -> bool:
        """Whether clients train probes: where all candidates are open, their own models began at the average."""
        return self.probe and self._is_due(server_round) and bool(self.memory.get("average"))

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

    def _bounds(self) -> dict[str, Bounds]:
        if not self.barriers:
            raise RunError("no barriers were measured for barrier_gated; 'fedsim run' does, or use measure = 'drift'")
        return {name: bounds_of(own, self.confidence) for name, own in self.barriers.items()}

    def _decide(self, values: Mapping[str, Bounds]) -> None:
        low, mean, high = self.memory["values"].new_tensor([values[name] for name in self.candidates]).unbind(1)
        stays, opens = low <= self.threshold + self.hysteresis, high <= self.threshold - self.hysteresis
        known = torch.where(mean.isnan(), self.memory["values"], mean)  # nobody may have measured a layer
        self.memory |= {"values": known, "open": torch.where(self.memory["open"], stays, opens)}

    def _drift(self, updates: Sequence[ClientUpdate], average: Params) -> dict[str, Bounds]:
        total = sum(update.num_examples for update in updates)
        models = [{**update.shared, **update.sets.get(PROBE, {})} for update in updates]
        drift = {}
        for name in self.candidates:
            keys = self.layers[name].parameters
            size = sum(float(average[key].double().square().sum()) for key in keys)
            spread = sum(
                update.num_examples / total * float((model[key].double() - average[key]).square().sum())
                for update, model in zip(updates, models, strict=True)
                for key in keys
            )
            drift[name] = Bounds(*[math.sqrt(spread / size) if size else math.inf] * 3)
        return drift
