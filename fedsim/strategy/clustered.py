"""A strategy whose clients share each layer with a cluster of others, found from the distances of their models."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from fedsim.errors import RunError
from fedsim.models.adapters import factors_of
from fedsim.models.averaging import weighted_mean
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.models.trees import Cluster, Tree, distances, tree_of
from fedsim.strategy.flower import Strategy
from fedsim.strategy.measurable import Bounds, ClientBarrier, bounds_of
from fedsim.strategy.options import Count, CountOrZero, Option
from fedsim.strategy.probes import PROBE, PROBING, ProbeRule
from fedsim.strategy.updates import ClientUpdate
from fedsim.training import LocalPlan, Sets

NONE = -1  # the cluster of a client that is in none


class Clustered(Strategy):
    """Average each unit of layers within clusters of clients, which a subclass cuts from their tree.

    A unit is an adapted layer's factors together, or any other layer. A client takes the mean of its cluster, weighted
    by examples; where it is in none, or all are in one, that of all clients. A cluster of which nobody takes part keeps
    its last mean. Where a unit has several clusters when the tree is made again, clients train a probe next to their
    own model. It begins at the average: of all clients where there is one cluster, else of the last probes; and it is
    the probes that are compared and measured.

    Attributes
    ----------
    units
        Layers of each unit, by its name, in the order of the model.
    """

    client_rule = ProbeRule
    warm_up: Count = Option(1, "Rounds of local training, in the last of which the tree is made.")
    every: CountOrZero = Option(0, "Rounds after which the tree is made again; 0 is never.")

    def prepare(self) -> None:
        """Find the units."""
        factors = factors_of(self.model)
        owner = {self.layers.find(key): each.path for each in factors for key in (each.first, each.second)}
        members: dict[str, list[str]] = {}
        for name in self.layers.names:
            members.setdefault(owner.get(name, name), []).append(name)
        self.units = {name: LayerGroup(name, tuple(layers)) for name, layers in members.items()}
        self._seconds = {each.path: (each.second,) for each in factors if each.path in self.units}
        self._measured: Sequence[Sequence[int]] = ()
        self._compared: Collection[int] = ()
        self._barriers: Mapping[str, Sequence[ClientBarrier]] = {}
        if self.every:
            self.unplanned = "whether probes are trained where the tree is made again"

    def cuts(self, tree: Tree, between: Sequence[np.ndarray], clients: Sequence[int]) -> Sequence[Sequence[Cluster]]:
        """Return the clusters of each unit.

        Parameters
        ----------
        tree
            Tree of the clients, by their places.
        between
            Distances of the clients in each unit: in an adapted layer those of its second factors B. The tree is that
            of their mean, over the adapted layers where there are any.
        clients
            Client of each place.
        """
        raise NotImplementedError

    def bounds(self, unit: str, clients: Sequence[int], confidence: float) -> Bounds:
        """Return the bounds of the barrier that the average of a measured cluster has at its members, in a unit.

        Nothing is known of a cluster without a client that has validation data: its bounds are infinitely far away.
        """
        if unit not in self._barriers:
            raise RunError(f"no barriers were measured for {type(self).__name__}; 'fedsim run' does that")
        place = list(self._measured).index(clients)
        return bounds_of([each for each in self._barriers[unit] if each.cluster == place], confidence)

    def check_rounds(self, rounds: int) -> None:
        """Check that the tree is made at all."""
        if rounds < self.warm_up:
            raise ValueError(
                f"makes its tree in round {self.warm_up}, and the run has {rounds}; set strategy.warm_up = {rounds} or "
                f"rounds = {self.warm_up}"
            )

    def is_due(self, server_round: int) -> bool:
        """Return whether the tree is made in this round."""
        since = server_round - self.warm_up
        return since == 0 or (since > 0 and self.every > 0 and since % self.every == 0)

    def shared(self, server_round: int) -> LayerGroup:
        """Return all layers, none before the tree is made."""
        return self.layers.group("all" if server_round >= self.warm_up else "none")

    def local_plan(self, server_round: int) -> LocalPlan:
        """Return the plan of a probe where there is one."""
        return PROBING if self._is_probing(server_round) else LocalPlan()

    def sets_for(self, server_round: int, client: int) -> Sets:
        """Return what a probe begins at and the client does not take for its own model."""
        return {PROBE: self.memory["path"]} if self._is_probing(server_round) else {}

    def for_client(self, server_round: int, client: int) -> Params:
        """Return the mean of the client's cluster of each unit, or that of all."""
        taken = super().for_client(server_round, client)
        for unit, labels in zip(self.units.values(), self.memory.get("cluster", ()), strict=False):
            label = _cluster_of(client, labels)
            if label != NONE and _is_split(labels):
                mean = self.memory["mean"][str(label)]
                taken |= {key: mean[key] for key in self.keys(unit) if key in taken}
        return taken

    def measured_clusters(self, server_round: int, updates: Sequence[ClientUpdate]) -> Sequence[Sequence[int]]:
        """Return the clusters of two clients or more in the tree, all clients first."""
        clusters = reversed(self._tree(updates)[0])
        self._compared = {update.client for update in updates}
        self._measured = [[updates[place].client for place in cluster] for cluster in clusters]
        return self._measured

    def take_barriers(self, server_round: int, barriers: Mapping[str, Sequence[ClientBarrier]]) -> None:
        """Take what `bounds` makes bounds of."""
        self._barriers = barriers

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        """Return the mean of all clients, and remember those of the clusters."""
        average = self.average(updates)
        if self.is_due(server_round):
            path = self.average(updates, of=PROBE) if self._is_probing(server_round) else average
            self._set_clusters(updates, path)
        self._average_clusters(updates)
        return average

    def _is_probing(self, server_round: int) -> bool:
        return self.is_due(server_round) and bool(self.memory.get("path"))

    def _tree(self, updates: Sequence[ClientUpdate]) -> tuple[Tree, list[np.ndarray]]:
        models = [{**update.shared, **update.sets.get(PROBE, {})} for update in updates]
        between = {}
        for name, unit in self.units.items():
            keys = self._seconds.get(name) or self.layers.keys(unit, buffers=False)
            between[name] = distances([{key: model[key] for key in keys} for model in models])
        compared = [between[name] for name in self._seconds or between]
        return tree_of(np.mean(compared, axis=0)), list(between.values())

    def _set_clusters(self, updates: Sequence[ClientUpdate], path: Params) -> None:
        """Remember each client's cluster of each unit, and the average at which probes begin in units with several."""
        if self._barriers:  # a client whose model is not finite was not measured, and is in no cluster
            updates = [update for update in updates if update.client in self._compared]
        clients = [update.client for update in updates]
        labels = torch.full((len(self.units), max(self.clients, clients[-1] + 1)), NONE)
        for row, clusters in enumerate(self.cuts(*self._tree(updates), clients)):
            for cluster in clusters:
                labels[row, [clients[place] for place in cluster]] = clients[min(cluster)]
        split = [unit for unit, row in zip(self.units.values(), labels, strict=True) if _is_split(row)]
        starts = {key: path[key] for unit in split for key in self.keys(unit)}
        self.memory = {"cluster": labels, "path": starts, "mean": {}}

    def _average_clusters(self, updates: Sequence[ClientUpdate]) -> None:
        """Remember the mean of each cluster whose members have sent something."""
        means = {label: dict(mean) for label, mean in self.memory.get("mean", {}).items()}
        for unit, labels in zip(self.units.values(), self.memory.get("cluster", ()), strict=False):
            by_label: dict[int, list[ClientUpdate]] = {}
            for update in updates if _is_split(labels) else ():
                by_label.setdefault(_cluster_of(update.client, labels), []).append(update)
            for label in by_label.keys() - {NONE}:
                parts = [{key: update.shared[key] for key in self.keys(unit)} for update in by_label[label]]
                weights = [update.num_examples for update in by_label[label]]
                means.setdefault(str(label), {}).update(weighted_mean(parts, weights, self.dtype))
        if means:
            self.memory["mean"] = means


def _cluster_of(client: int, labels: torch.Tensor) -> int:
    """Return a client's cluster in a unit; a client that is new has none."""
    return int(labels[client]) if client < len(labels) else NONE


def _is_split(labels: torch.Tensor) -> bool:
    """Return whether clients are in more clusters than one."""
    return len(labels[labels != NONE].unique()) > 1
