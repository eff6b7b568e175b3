"""Trees of models, and clusters of them layer by layer: cuts of one tree, each a refinement of the one before."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import silhouette_score

from fedsim.models.distance import distance
from fedsim.models.params import Params

Cluster = tuple[int, ...]
# The two clusters of which each cluster of two models or more was made, in the order of the merges: all models last.
Tree = dict[Cluster, tuple[Cluster, Cluster]]


def distances(models: Sequence[Params]) -> np.ndarray:
    """Return the L2 distances of models, or of parts of models, to each other, shape [models, models]."""
    found = np.zeros((len(models), len(models)))
    for i, j in combinations(range(len(models)), 2):
        found[i, j] = found[j, i] = distance(models[i], models[j])
    return found


def tree_of(between: np.ndarray) -> Tree:
    """Return the tree in which the two clusters with the smallest mean distance are merged, until one is left.

    Parameters
    ----------
    between
        Distances, symmetric, shape [models, models].
    """
    nodes: list[Cluster] = [(model,) for model in range(len(between))]
    tree: Tree = {}
    for one, other in linkage(squareform(between), "average")[:, :2].astype(int) if len(between) > 1 else ():
        nodes.append(tuple(sorted(nodes[one] + nodes[other])))
        tree[nodes[-1]] = nodes[one], nodes[other]
    return tree


def cut(tree: Tree, models: int, count: int) -> list[Cluster]:
    """Return the ``count`` clusters that are left before the last ``count - 1`` merges."""
    clusters: set[Cluster] = {(model,) for model in range(models)}
    for merged, parts in list(tree.items())[: models - count]:
        clusters = clusters.difference(parts) | {merged}
    return sorted(clusters)


def cuts_by_silhouette(tree: Tree, of_layers: Sequence[np.ndarray], more: int, single: float) -> list[list[Cluster]]:
    """Return each layer's clusters: as many as have the largest mean silhouette, the fewest of those that have it.

    Parameters
    ----------
    of_layers
        Distances in each layer, from the inputs on.
    more
        Number of counts that a layer chooses from: that of the layer before, and those above it. All models apart is
        none of them.
    single
        What stands for the silhouette of one cluster, which has none.
    """
    found, models = [], len(of_layers[0])
    count = min(1, models)
    for between in of_layers:
        scores = {}
        for number in range(count, min(models, count + more)):
            labels = np.empty(models, dtype=int)
            for label, members in enumerate(cut(tree, models, number)):
                labels[list(members)] = label
            scores[number] = single if number == 1 else silhouette_score(between, labels, metric="precomputed")
        count = max(scores, key=lambda number: scores[number]) if scores else count
        found.append(cut(tree, models, count))
    return found


def cuts_by_rule(
    tree: Tree, models: int, layers: Sequence[str], may_share: Callable[[str, Cluster], bool]
) -> list[list[Cluster]]:
    """Return each layer's clusters: the largest in the tree that may share it, within those of the layer before."""
    found, clusters = [], [tuple(range(models))]
    for layer in layers:
        open_, clusters = clusters, []
        while open_:
            cluster = open_.pop()
            if len(cluster) < 2 or may_share(layer, cluster):
                clusters.append(cluster)
            else:
                open_ += tree[cluster]
        found.append(sorted(clusters))
    return found
