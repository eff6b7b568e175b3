"""Clusters of clients, layer by layer, as cuts of one tree: by distance against its definition, and by barriers."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform

from fedsim.config import Config
from fedsim.errors import ConfigError, RunError
from fedsim.experiment import rounds as run_rounds
from fedsim.experiment.dry_run import describe_run
from fedsim.experiment.measuring.wanted import wanted_barriers
from fedsim.federation.federation import federation_of
from fedsim.models.params import Params, load_state_
from fedsim.models.trees import cut, cuts_by_rule, cuts_by_silhouette, tree_of
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.strategy import ClientBarrier
from fedsim.training.evaluation import evaluate
from tests.strategies.harness import Play, assert_close, descend, lora_mlp, mean_of

SIZES = (5, 8, 4, 6, 7)
LAYERS = ("fc1", "fc2", "fc3")


def points(seed: int, models: int) -> np.ndarray:
    """Return distances of random points in a plane, two heaps of them."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(models, 2)) + 3 * (np.arange(models)[:, None] % 2)
    return np.linalg.norm(drawn[:, None] - drawn[None], axis=-1)


def silhouette(between: np.ndarray, labels: Sequence[int]) -> float:
    """Return the mean silhouette, written down plainly; that of a model alone in its cluster is 0."""
    labels, found = np.array(labels), []
    for i, label in enumerate(labels):
        own = [j for j in range(len(labels)) if labels[j] == label and j != i]
        others = [between[i, labels == other].mean() for other in set(labels) - {label}]
        inside = between[i, own].mean() if own else 0.0
        found.append((min(others) - inside) / max(min(others), inside) if own else 0.0)
    return float(np.mean(found))


def partition(labels: Sequence[int]) -> list[tuple[int, ...]]:
    return sorted(tuple(np.flatnonzero(np.array(labels) == label)) for label in set(labels))


def counts_of(layers: Sequence[np.ndarray], more: int, single: float) -> tuple[np.ndarray, list[int]]:
    """Return the cut of the tree for each count of clusters, [models, counts - 1], and each layer's count."""
    cuts = cut_tree(linkage(squareform(np.mean(layers, axis=0)), "average"), range(1, len(layers[0]) + 1))
    count, found = 1, []
    for between in layers:
        scores = {c: single if c == 1 else silhouette(between, cuts[:, c - 1]) for c in range(count, count + more)}
        allowed = {c: score for c, score in scores.items() if c < len(between)} or {count: 0.0}
        count = max(allowed, key=lambda c: allowed[c])
        found.append(count)
    return cuts, found


@pytest.mark.parametrize("seed", range(4))
def test_cuts_by_silhouette_are_those_of_the_definition_and_refine_each_other(seed: int) -> None:
    layers = [points(10 * seed + layer, 7) for layer in range(3)]
    tree = tree_of(np.mean(layers, axis=0))
    for count in range(1, 8):
        labels = cut_tree(linkage(squareform(np.mean(layers, axis=0)), "average"), count)[:, 0]
        assert cut(tree, 7, count) == partition(labels)
    cuts, counts = counts_of(layers, 3, 0.2)
    found = cuts_by_silhouette(tree, layers, 3, 0.2)
    assert found == [partition(cuts[:, count - 1]) for count in counts]
    for coarse, fine in pairwise(found):
        assert all(any(set(cluster) <= set(larger) for larger in coarse) for cluster in fine)


def test_by_rule_a_layer_takes_the_largest_clusters_that_may_share_it_within_those_before() -> None:
    tree = tree_of(np.array([[0, 1, 9, 9], [1, 0, 9, 9], [9, 9, 0, 2], [9, 9, 2, 0]], dtype=float))
    assert list(tree) == [(0, 1), (2, 3), (0, 1, 2, 3)]
    asked, refused = [], {("a", (0, 1, 2, 3)), ("b", (2, 3))}

    def may_share(layer: str, cluster: tuple[int, ...]) -> bool:
        asked.append((layer, cluster))
        return (layer, cluster) not in refused

    found = cuts_by_rule(tree, 4, ["a", "b", "c"], may_share)
    assert found == [[(0, 1), (2, 3)], [(0, 1), (2,), (3,)], [(0, 1), (2,), (3,)]]
    assert ("b", (0, 1, 2, 3)) not in asked
    assert cuts_by_rule(tree_of(np.zeros((1, 1))), 1, ["a"], may_share) == [[(0,)]]
    assert cuts_by_silhouette({}, [np.zeros((1, 1))], 3, 0.0) == [[(0,)]]


def test_rounds_by_distance_are_those_of_the_definition() -> None:
    options = {"warm_up": 2, "every": 2, "more": 3, "single": 0.3}
    play = Play("layer_tree", options, rounds=6, sizes=SIZES, absent={3: 1})
    own, path = [play.initial] * len(SIZES), play.initial
    clusters: dict[str, list[tuple[int, ...]]] = {}
    means: dict[tuple[int, ...], Params] = {}
    seen = []
    for server_round in play.rounds():
        there, due = sorted(play.present(server_round)), server_round in (2, 4, 6)
        probing = due and any(len(found) > 1 for found in clusters.values())
        probes = list(own)
        for client in there:
            stream, before = play.training_stream(server_round, client), own[client]
            own[client] = descend(play.model, before, play.batches(server_round, client, stream=stream), 0.1)
            probes[client] = own[client]
            if probing:
                started = {k: path[k] if len(clusters[k.partition(".")[0]]) > 1 else before[k] for k in path}
                probes[client] = descend(play.model, started, play.batches(server_round, client, stream=stream), 0.1)
        if server_round == 1:
            continue
        weights = [SIZES[client] for client in there]
        average = mean_of([own[client] for client in there], weights)
        if due:
            path = mean_of([probes[client] for client in there], weights)
            layers = [distances_of(name, [probes[client] for client in there]) for name in LAYERS]
            cuts, counts = counts_of(layers, 3, 0.3)
            clusters = {name: partition(cuts[:, c - 1]) for name, c in zip(LAYERS, counts, strict=True)}
            seen.append(counts)
        assert_close(play.strategy.global_model, average)
        for name, found in clusters.items():
            for cluster in found:
                if members := [client for client in cluster if client in there]:
                    mean = mean_of([own[client] for client in members], [SIZES[client] for client in members])
                    means.setdefault(cluster, {}).update({k: v for k, v in mean.items() if k.startswith(name)})
                for client in cluster:
                    taken = average if len(found) == 1 else means[cluster]
                    own[client] = own[client] | {k: v for k, v in taken.items() if k.startswith(name)}
        for client in range(len(SIZES)):
            assert_close(play.personalised(client), own[client])
    assert max(map(max, seen)) > 1
    assert len({tuple(counts) for counts in seen}) > 1


def distances_of(name: str, models: Sequence[Params]) -> np.ndarray:
    flat = np.stack(
        [np.concatenate([m[f"{name}.{kind}"].numpy().ravel() for kind in ("weight", "bias")]) for m in models]
    )
    return np.linalg.norm(flat[:, None] - flat[None], axis=-1)


def test_with_one_cluster_in_each_layer_it_is_fedavg_to_the_bit() -> None:
    tree, average = Play("layer_tree", {"single": 2.0, "every": 1}), Play("full")
    for server_round in tree.rounds():
        assert_close(tree.strategy.global_model, average.round(server_round), tolerance=0.0)
        for client in range(3):
            assert_close(tree.personalised(client), average.personalised(client), tolerance=0.0)


def test_the_factors_of_an_adapted_layer_are_one_unit_compared_by_b() -> None:
    play = Play("layer_tree", {"single": -1.0, "more": 2}, rounds=2, sizes=SIZES, model=lora_mlp, absent={})
    assert {name: len(unit) for name, unit in play.strategy.units.items()} == {"fc1": 2, "fc2": 2, "fc3": 1}
    play.round(1)
    uploads = [play.uploaded(client) for client in range(len(SIZES))]
    between = []
    for name in ("fc1", "fc2"):
        flat = np.stack([each[f"{name}.lora_B.default.weight"].numpy().ravel() for each in uploads])
        between.append(np.linalg.norm(flat[:, None] - flat[None], axis=-1))
    tree = tree_of(np.mean(between, axis=0))
    labels = play.strategy.memory["cluster"]
    assert partition(labels[0].tolist()) == cut(tree, len(SIZES), 2)
    for client in range(len(SIZES)):
        members = [other for other in range(len(SIZES)) if labels[0, other] == labels[0, client]]
        mean = mean_of([uploads[other] for other in members], [SIZES[other] for other in members])
        for key in ("fc1.lora_A.default.weight", "fc1.lora_B.default.weight"):
            assert torch.allclose(play.strategy.for_client(2, client)[key], mean[key], rtol=0, atol=1e-12)


TREE = {"name": "layer_tree", "by": "barrier", "every": 2, "confidence": 0.5}


@pytest.mark.parametrize(("threshold", "other"), [(99.0, "full"), (-99.0, "local")])
def test_by_barrier_its_limits_are_fedavg_and_local_training(
    threshold: float, other: str, tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    def accuracies(**strategy: object) -> pd.Series:
        folder = play(tiny(rounds=3, strategy=strategy, barriers={"every": 0}), str(strategy["name"]))
        rows = read_rows(folder.metrics).query("model == 'personalised' and split == 'test'")
        # Before the evaluation after the first round a cluster of one has taken nothing from others.
        return rows.set_index(["round", "client", "metric"])["value"]

    assert accuracies(**TREE, threshold=threshold).to_dict() == pytest.approx(
        accuracies(name=other).to_dict(), abs=1e-6
    )


def test_what_is_measured_for_barriers_are_the_averages_of_clusters_and_it_is_counted(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = tiny(rounds=1, strategy=TREE | {"examples": 6}, barriers={"every": 0}), []

    def keep(own, updates, gate, threads, clusters):
        asked.append((updates, clusters))
        return wanted_barriers(own, updates, gate, threads, clusters)

    monkeypatch.setattr(run_rounds, "wanted_barriers", keep)
    federation, folder = federation_of(config), play(config)
    [(updates, clusters)] = asked
    assert len(clusters[0]) == len(updates) == len(clusters) + 1
    states = {update.client: {**update.shared} for update in updates}
    weights = {update.client: update.num_examples for update in updates}
    table, model = pd.read_parquet(folder.measured("gate", 1)), federation.model()
    for place, cluster in enumerate(clusters):
        mean = mean_of([states[client] for client in cluster], [weights[client] for client in cluster])
        for client in cluster:
            inputs, targets = (values[:6] for values in federation.data.client(client).validation)
            load_state_(model, states[client])
            own = evaluate(model, inputs, targets).loss
            load_state_(model, states[client] | {key: mean[key] for key in ("fc1.weight", "fc1.bias")})
            row = table[(table["layer"] == "fc1") & (table["client"] == client) & (table["cluster"] == place)]
            assert row["barrier"].item() == pytest.approx(evaluate(model, inputs, targets).loss - own, abs=1e-5)
    traffic = read_rows(folder.communication)
    gate = traffic[traffic["set"] == "barriers"].groupby("client")[["down", "up"]].sum()
    size = 4 * (64 * 12 + 12 + 12 * 10 + 10)
    metrics = read_rows(folder.metrics).query("split == 'train'").set_index(["metric", "client"])["value"]
    for client in states:
        depth = sum(client in cluster for cluster in clusters)
        assert gate.loc[client].to_dict() == {"down": depth * size, "up": depth * 2 * 8}
        n = len(federation.data.client(client).validation[1][:6])
        passes = metrics["forward_examples", client] - metrics["backward_examples", client]
        assert passes == n * (1 + 2 * depth)


def test_a_cluster_is_split_only_where_its_barrier_is_shown_to_be_too_large() -> None:
    play = Play("layer_tree", {"by": "barrier", "confidence": 0.9}, sizes=SIZES, absent={})
    play.train(1)
    with pytest.raises(RunError, match="no barriers were measured for LayerTree"):
        play.strategy.step(1, play.received)
    clusters = play.strategy.measured_clusters(1, play.received.updates)
    large = [
        ClientBarrier(client, 1.0 + 0.1 * client if place == 0 else 0.0, 1.0, 9, place)
        for place, cluster in enumerate(clusters)
        for client in cluster
    ]
    noisy = [each._replace(nats=each.nats * (1 if each.client == 0 else 0)) for each in large]
    play.strategy.take_barriers(1, {"fc1": noisy, "fc2": large, "fc3": noisy})
    play.strategy.step(1, play.received)
    found = [len(set(row)) for row in play.strategy.memory["cluster"].tolist()]
    assert found == [1, 2, 2]  # the last layer stays within the clusters of the one before


def test_one_count_to_choose_from_is_refused_as_no_layer_would_ever_be_split() -> None:
    assert cuts_by_silhouette(tree_of(points(0, 7)), [points(0, 7)], 1, -1.0) == [[tuple(range(7))]]
    with pytest.raises(
        ValueError, match=r"^strategy.more = 1 must be at least 2 \(Counts of clusters that a layer chooses from"
    ):
        Play("layer_tree", {"more": 1})


def test_a_run_that_ends_before_its_tree_is_made_is_refused(tiny: Callable[..., Config]) -> None:
    message = r"makes its tree in round 3, and the run has 2; set strategy.warm_up = 2 or rounds = 3"
    with pytest.raises(ConfigError, match=message):
        describe_run(tiny(rounds=2, strategy={"name": "layer_tree", "warm_up": 3}))
