"""Clients share each layer with a cluster of others: cuts of one tree, finer in deeper layers."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Lt

from fedsim.models.trees import Cluster, Tree, cuts_by_rule, cuts_by_silhouette
from fedsim.strategy import Clustered, Count, Measurable, Option


class LayerTree(Clustered):
    """Average each layer within clusters of clients, cuts of one tree that are finer in deeper layers: FedTreeLoRA.

    References
    ----------
    FedTreeLoRA, arXiv 2603.13282, clusters by distance. By barrier it is new here, and uses the layer-wise barriers of
    Adilova et al. 2024, arXiv 2307.06966.

    Notes
    -----
    Clients train alone for ``warm_up`` rounds, then send their models. Average linkage of their distances, in the mean
    over the layers, makes the tree, from which each layer takes a cut that refines the one before: by ``distance`` as
    many clusters as have the best silhouette in that layer's distances; by ``barrier`` the largest ones whose average
    is not shown to raise the loss on their members' validation data by more than ``threshold``, in the mean over them.
    In an adapted layer the distances are those of the factors B; its factors are averaged and measured together. The
    paper makes its tree once; its linkage and its values of ``more`` and ``single`` are not known to us.

    Clients send and get all layers in each round. For barriers each also gets the average of every cluster in the tree
    that it is in, and sends a loss for each layer of it; it passes its validation data once for each of these. Where
    the tree is made again, probes cost another training, all layers up, and those that are not averaged over all down.
    All of this is counted. A client that was absent when the tree was made takes the average of all.
    """

    by: Literal["distance", "barrier"] = Option(
        "distance", "What cuts the tree: distances, as published, or barriers; options of the other have no effect."
    )
    more: Annotated[int, Ge(2)] = Option(
        3, "Counts of clusters that a layer chooses from, by distance: that of the layer before, and those above it."
    )
    single: float = Option(0.1, "Silhouette that a split must exceed, by distance; else all clients share.")
    threshold: float = Option(0.05, "Largest barrier of a cluster, in nats, by barrier.")
    confidence: Annotated[float, Ge(0.5), Lt(1)] = Option(
        0.9, "Confidence with which a larger barrier must be shown, by barrier."
    )
    examples: Count = Option(100, "Validation examples of each client at most, by barrier.")

    def measurable(self, server_round: int) -> Measurable | None:
        if self.by == "distance" or not self.is_due(server_round):
            return None
        return Measurable("clients", self.layers.group("all"), self.examples, tuple(self.units.values()))

    def cuts(self, tree: Tree, between: Sequence[np.ndarray], clients: Sequence[int]) -> Sequence[Sequence[Cluster]]:
        if self.by == "distance":
            return cuts_by_silhouette(tree, between, self.more, self.single)

        def may_share(unit: str, cluster: Cluster) -> bool:
            members = [clients[place] for place in cluster]
            return self.bounds(unit, members, self.confidence).low <= self.threshold

        return cuts_by_rule(tree, len(clients), list(self.units), may_share)
