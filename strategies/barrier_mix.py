"""Each client takes the mix of what it has and what it gets that validation data show best."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.models.layers import LayerGroup, Layers
from fedsim.models.params import Params, lerp
from fedsim.strategy import (
    ClientRule,
    ClientUpdate,
    Count,
    Decay,
    Finished,
    Local,
    LocalPlan,
    NonNegative,
    Option,
    Phase,
    Sets,
    Strategy,
)
from fedsim.training.targets import labels_of

TS = (0.0, 0.5, 1.0)
Ts = tuple[float, ...]


class BarrierMixRule(ClientRule):
    """Chooses the set ``personal`` before training, by the set ``curve``: losses of all mixes on validation data."""

    needs_validation = True
    groups: tuple[str, ...]
    prior: float

    def prepare(self) -> None:
        self._keys = _keys_of(self.layers, self.groups)
        self._points: list[Ts] = list(itertools.product(TS, repeat=len(self.groups)))
        last = self.layers.group(self.groups[-1]).layers
        module = self.model.get_submodule(last[0]) if self.model is not None and len(last) == 1 else None
        self._head = (last[0], module) if isinstance(module, nn.Linear) else None

    def start(self, local: Local) -> Local:
        if "personal" not in local.sets:  # the client has no model of its own yet
            return replace(local, sets={**local.sets, "personal": local.params})
        with torch.no_grad():
            sums = self._sums(local)
        population = local.sets["population"]["curve"] if "population" in local.sets else torch.zeros_like(sums)
        losses = sums + self.prior * population
        # Where nothing is known, as without validation data, it is the average: the last point.
        best = int(torch.nan_to_num(losses, nan=torch.inf).argmin()) if losses.any() else len(self._points) - 1
        return replace(local, sets={**local.sets, "personal": self._mix(local, best), "curve": {"sums": sums}})

    def finish(self, local: Local, started: Local) -> Finished:
        empty = torch.zeros(len(self._points) + 2, dtype=torch.float64, device=local.targets.device)
        examples = len(labels_of(local.validation[1])) if "curve" in started.sets else 0
        sums = started.sets["curve"]["sums"] if examples else empty
        sent = {"curve": {"sums": sums, "examples": torch.full_like(empty[:1], examples)}}
        return Finished(local.params, kept={"personal": local.sets["personal"]}, sent=sent)

    def personalised(self, local: Local) -> Params:
        return local.sets["personal"]

    def _mix(self, local: Local, place: int) -> Params:
        """Return a mix by its place in the curve: a point for each group, the personal model, half-way to it."""
        if place < len(self._points):
            return self._between(local.own, local.params, self._points[place])
        personal, is_half = local.sets["personal"], place > len(self._points)
        return self._between(personal, local.params, [0.5] * len(self.groups)) if is_half else personal

    def _between(self, start: Params, end: Params, ts: Sequence[float]) -> Params:
        """Return the mix whose groups are at these t; layers of no group are the average's."""
        mixed = [lerp(_part(start, keys), _part(end, keys), t) for keys, t in zip(self._keys, ts, strict=True)]
        return {**end, **{key: value for part in mixed for key, value in part.items()}}

    def _sums(self, local: Local) -> Tensor:
        """Return the sum over the validation examples of each mix's loss, float64."""
        inputs, targets = local.validation
        found, count = torch.zeros(len(self._points) + 2, dtype=torch.float64), len(labels_of(targets))
        features: dict[Ts, Tensor] = {}
        for place in range(len(found) * bool(count)):
            mixed = self._mix(local, place)
            before = self._points[place][:-1] if place < len(self._points) else None
            if before in features:
                logits = self._head_of(mixed, features[before])
            else:
                logits, caught = self._forward(local, mixed, inputs)
                if before is not None and caught is not None:
                    features[before] = caught
            found[place] = float(local.loss_of(logits, targets)) * count
        return found.to(targets.device)

    def _forward(self, local: Local, model: Params, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the outputs, and what the last group gets if it is a layer that the outputs come from."""
        if self._head is None:
            return local.logits(model, inputs), None
        local.network.passes.forward += len(inputs)
        logits, features = local.network.logits_and_features(model, inputs, self._head[0])
        again = self._head_of(model, features)
        return logits, features if again.shape == logits.shape and torch.allclose(again, logits) else None

    def _head_of(self, model: Params, features: Tensor) -> Tensor:
        assert self._head is not None
        name, module = self._head
        entries = {kind: model[f"{name}.{kind}"] for kind in module.state_dict()}
        logits: Tensor = functional_call(module, entries, features)
        return logits


class BarrierMix(Strategy):
    """Train a shared and a personal model, and take the mix of them that validation data show best.

    The shared model is trained from the average by all clients, as with FedAvg. Before it trains, and before it is
    evaluated, a client measures on its validation data: for each layer group the points t = 0, 1/2 and 1 between its
    own trained copy of the shared model and the new average, all combinations; its personal model; and half-way from
    that to the average. The mix with the smallest sum of its own losses and ``prior`` times the population's mean loss
    is what is evaluated, and where the training of the personal model continues.

    References
    ----------
    New here; it reads barriers as Adilova et al. 2024, arXiv 2307.06966, on models that started from the average.

    Notes
    -----
    The population's losses are the mean over the examples of the clients of the last round. Each client sends and gets
    one number per mix besides FedAvg's bytes. It trains two models. A client without validation data takes what is best
    for the population, or the average while nothing is known of it.
    """

    client_rule = BarrierMixRule
    groups: tuple[str, ...] = Option(("body", "head"), "Layer groups that are mixed independently.")
    prior: NonNegative = Option(60.0, "Weight of the population's mean loss, in examples.")
    server_momentum: Decay = Option(0.5, "Share of the last step of the average that the next one keeps.")
    personal_epochs: Count | None = Option(None, "Epochs of the personal model; as many as of the other if not given.")

    def prepare(self) -> None:
        _keys_of(self.layers, self.groups)

    def kept(self, server_round: int) -> LayerGroup:
        return self.layers.group("all")  # to mix its trained copy with the next average

    def local_plan(self, server_round: int) -> LocalPlan:
        return LocalPlan((Phase(epochs=self.personal_epochs, trains="personal"), Phase()))

    def sets_for(self, server_round: int, client: int) -> Sets:
        return {"population": {"curve": self.memory["curve"]}} if "curve" in self.memory else {}

    def planned_sets(self, server_round: int, client: int) -> Mapping[str, tuple[int, int]]:
        size = (len(TS) ** len(self.groups) + 2) * torch.float64.itemsize
        # Known once a client with validation examples, as all are taken to have, has trained again.
        is_known = len(self.exchange.last_round) < (server_round - 1) * len(self.drawn(1))
        return {"curve": (size + torch.float64.itemsize, 0), "population": (0, size if is_known else 0)}

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        curves = [update.sets["curve"] for update in updates]
        if examples := sum(float(curve["examples"]) for curve in curves):
            self.memory["curve"] = sum(curve["sums"] for curve in curves) / examples
        mean, step = self.average(updates), self.memory.setdefault("step", {})
        for key in self.parameters:
            step[key] = self.server_momentum * step.get(key, 0) + mean[key] - self.global_model[key]
        return mean | {key: self.global_model[key] + value for key, value in step.items()}


def _keys_of(layers: Layers, groups: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the entries of each group."""
    if not groups:
        raise ValueError("groups = [] must name at least one layer group, such as ['body', 'head']")
    found = [layers.group(group) for group in groups]
    for (one, first), (other, second) in itertools.combinations(zip(groups, found, strict=True), 2):
        if both := set(first) & set(second):
            raise ValueError(f"groups: {one!r} and {other!r} both hold {min(both)}; each layer may be in one only")
    return [layers.keys(group) for group in found]


def _part(model: Mapping[str, Tensor], keys: Sequence[str]) -> Params:
    return {key: model[key] for key in keys}
