"""FedPAC against the authors' procedure, in loops and lists, and its quadratic program against enumeration."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from fedsim.models.params import Params, state_of
from fedsim.strategy.messages import sets_of
from strategies import FedPac
from strategies.fedpac import head_weights
from tests.strategies.harness import (
    CLASSES,
    Mlp,
    Play,
    assert_close,
    body,
    class_two_of_one,
    mean_of,
    network_of,
)

HEAD, LR, HEAD_LR, PULL = ("fc3.weight", "fc3.bias"), 0.1, 0.2, 5.0
OPTIONS = {"pull": PULL, "head_lr": HEAD_LR}
Means = dict[int, Tensor]


def by_class(play: Play, params: Params, client: int) -> dict[int, Tensor]:
    inputs, targets = play.train_set(client)
    found = body(network_of(play.model, params), inputs).detach()
    return {label: found[targets == label] for label in targets.unique().tolist()}


def statistics(play: Play, params: Params, client: int) -> tuple[float, Tensor]:
    """Return V and h: means of features by class times the class's share."""
    classes, n = by_class(play, params, client), play.sizes[client]
    variance, scaled = 0.0, torch.zeros(CLASSES, 5, dtype=torch.float64)
    for label, features in classes.items():
        share, mean = len(features) / n, features.mean(0)
        scaled[label] = share * mean
        variance += share * float(torch.trace(features.T @ features / len(features)))
        variance -= share**2 * float(mean @ mean)
    return variance / n, scaled


def enumerated(quadratic: np.ndarray) -> np.ndarray:
    """Return the minimum on the simplex: the best of the stationary points of all its faces."""
    best, lowest = np.zeros(0), np.inf
    for size in range(1, len(quadratic) + 1):
        for face in combinations(range(len(quadratic)), size):
            part = np.linalg.solve(quadratic[np.ix_(face, face)], np.ones(size))
            weights = np.zeros(len(quadratic))
            weights[list(face)] = part / part.sum()
            if weights.min() >= 0 and (value := weights @ quadratic @ weights) < lowest:
                best, lowest = weights, value
    return best


def quadratic_of(variances: list[float], scaled: list[Tensor], i: int) -> np.ndarray:
    found = np.diag(np.array(variances))
    for j, h_j in enumerate(scaled):
        for k, h_k in enumerate(scaled):
            for label in range(CLASSES):
                found[j, k] += float((scaled[i][label] - h_j[label]) @ (scaled[i][label] - h_k[label]))
    return found


def trained(play: Play, params: Params, server_round: int, client: int, means: Means | None, own: Means) -> Params:
    network, stream = network_of(play.model, params), play.training_stream(server_round, client)
    head = [value for key, value in network.named_parameters() if key in HEAD]
    rest = [value for key, value in network.named_parameters() if key not in HEAD]

    def step(weights: list[Tensor], loss: Tensor, lr: float) -> None:
        with torch.no_grad():
            for value, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                value -= lr * slope

    for inputs, targets in play.batches(server_round, client, 1, stream=stream):
        step(head, cross_entropy(network(inputs), targets), HEAD_LR)
    for inputs, targets in play.batches(server_round, client, stream=stream):
        features = body(network, inputs)
        loss = cross_entropy(network.fc3(features), targets)  # type: ignore[operator]
        if means is not None:
            goals = features.detach().clone()
            for row, label in enumerate(targets.tolist()):
                goals[row] = means.get(label, own[label])
            loss = loss + PULL * mse_loss(goals, features)
        step(rest, loss, LR)
    return {key: value.detach().clone() for key, value in state_of(network).items()}


@pytest.mark.parametrize("cohort", [1, 3])
def test_rounds_are_those_of_the_authors(cohort: int) -> None:
    play = Play("fedpac", OPTIONS, rounds=4, change=class_two_of_one, cohort=cohort)
    model, heads, means, spread = play.initial, dict[int, Params](), None, []
    for server_round in play.rounds():
        there, models, measured, found = sorted(play.present(server_round)), {}, {}, {}
        for client in there:
            start = model | heads.get(client, {})
            own = {label: rows.mean(0) for label, rows in by_class(play, start, client).items()}
            measured[client] = statistics(play, start, client)
            models[client] = trained(play, start, server_round, client, means, own)
            found[client] = by_class(play, models[client], client)
            assert_close(play.uploaded(client), models[client], tolerance=1e-7)
        model = mean_of(list(models.values()), [play.sizes[client] for client in there])
        means = {
            label: torch.cat([each[label] for each in found.values() if label in each]).mean(0)
            for label in sorted({label for each in found.values() for label in each})
        }
        assert_close(play.strategy.global_model, model, tolerance=1e-7)
        for place, client in enumerate(there):
            variances, scaled = (list(each) for each in zip(*measured.values(), strict=True))
            weights = enumerated(quadratic_of(variances, scaled, place))
            weights = [weight if weight > 1e-3 else 0.0 for weight in weights]
            members = [{key: models[other][key] for key in HEAD} for other in there]
            heads[client] = mean_of(members, weights)
            spread.append(max(weights))
            assert_close(play.personalised(client), model | heads[client], tolerance=1e-7)
    assert 0.4 < min(spread) < 0.99  # combinations, and not one head each


def test_weights_are_those_of_enumeration() -> None:
    rng = np.random.default_rng(0)
    vertices = set[int]()
    for _ in range(200):
        variances, means = rng.gamma(0.5, size=3), rng.normal(size=(3, 4)) * rng.gamma(0.5)
        for place in range(3):
            apart = means - means[place]
            expected = enumerated(np.diag(variances) + apart @ apart.T)
            found = head_weights(variances, means @ means.T, place)
            np.testing.assert_allclose(found, np.where(expected > 1e-3, expected, 0), atol=2e-3)
            vertices.add(int((found > 0).sum()))
    assert vertices == {1, 2, 3}


@pytest.mark.parametrize("variance", [0.0, 2.0])
@pytest.mark.parametrize("clients", [1, 3, 30])
def test_equal_clients_count_the_same(variance: float, clients: int) -> None:
    weights = head_weights(np.full(clients, variance), np.full((clients, clients), 1.0), clients // 2)
    np.testing.assert_allclose(weights, 1 / clients, rtol=1e-6)


def bodies(play: Play) -> Iterator[Params]:
    yield {key: value for key, value in play.strategy.global_model.items() if key not in HEAD}
    yield from (play.personalised(client) for client in range(3))


def test_without_means_and_combinations_it_is_fedrep() -> None:
    pac = Play("fedpac", {"pull": 0.0, "combine": False, "head_lr": LR})
    rep = Play("fedrep", {"head_epochs": 1, "body_epochs": 2})
    for server_round in pac.rounds():
        rep.round(server_round)
        for one, other in zip(bodies(pac), bodies(rep), strict=True):
            assert_close(one, other, tolerance=0.0)


@pytest.mark.parametrize("options", [{}, {"combine": False}])
def test_a_client_alone_keeps_its_own_head(options: dict[str, Any]) -> None:
    alone = Play("fedpac", options, sizes=(5,), absent={})
    for _ in alone.rounds():
        assert_close(alone.personalised(0), alone.strategy.global_model | alone.kept(0).get("model", {}), tolerance=0.0)


def test_personal_heads_do_not_travel_and_need_no_statistics() -> None:
    play = Play("fedpac", {"combine": False})
    for _ in play.rounds():
        for client, message in play.replied.items():
            assert not set(HEAD) & play.uploaded(client).keys()
            assert list(sets_of(message.content)) == ["class_means"]


def test_a_new_client_gets_the_mean_head() -> None:
    play = Play("fedpac", absent={1: 2})
    assert_close(play.round(1), play.personalised(2), tolerance=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "fc*"}, "leaves nothing to train in the other layers"),
        ({"head": "fc1 | fc3"}, "is fc1, fc3; it must be a plain linear layer; name that layer"),
        ({"head_lr": 0}, "head_lr = 0 must be greater than 0"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedPac(Mlp(), **options)
