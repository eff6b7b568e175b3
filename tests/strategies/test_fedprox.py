"""FedProx against the paper's objective, and against Flower's aggregation."""

import copy

import pytest
import torch
from flwr.serverapp.strategy import FedProx as FlowerFedProx
from torch.nn.functional import cross_entropy

from fedsim.errors import ConfigError
from fedsim.models.params import Params, load_state_, state_of
from fedsim.strategy.messages import decode
from tests.strategies.harness import Batch, Play, assert_close, mean_of

BODY = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def proximal_sgd(play: Play, params: Params, batches: list[Batch], mu: float) -> Params:
    """Descend the sum of the mean cross-entropy and (mu / 2) ||w - w_t||^2, all by autograd."""
    network = copy.deepcopy(play.model).train()
    load_state_(network, params)
    weights = dict(network.named_parameters())
    for inputs, targets in batches:
        square = sum((value - params[key]).square().sum() for key, value in weights.items())
        loss = cross_entropy(network(inputs), targets) + mu / 2 * square
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for value, gradient in zip(weights.values(), gradients, strict=True):
                value -= 0.1 * gradient
    return {key: value.detach().clone() for key, value in state_of(network).items()}


def test_clients_descend_the_papers_objective_and_flower_averages_the_same() -> None:
    play, flower = Play("fedprox", {"mu": 0.7}), FlowerFedProx(proximal_mu=0.7)
    expected = play.initial
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        trained = [proximal_sgd(play, expected, play.batches(server_round, client), 0.7) for client in there]
        for client, params in zip(there, trained, strict=True):
            assert_close(play.uploaded(client), params)
        arrays, _ = flower.aggregate_train(server_round, list(play.replied.values()))
        expected = mean_of(trained, [play.sizes[client] for client in there])
        assert_close(play.strategy.global_model, expected)
        assert_close(play.strategy.global_model, decode(arrays))


def test_personal_layers_are_held_near_their_own_last_value() -> None:
    play = Play("fedprox", {"mu": 2.0, "shared": "body"})
    shared, own = play.initial, dict.fromkeys(range(3), play.initial)
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        for client in there:
            began = own[client] | {key: shared[key] for key in BODY}
            own[client] = proximal_sgd(play, began, play.batches(server_round, client), 2.0)
        mean = mean_of([own[client] for client in there], [play.sizes[client] for client in there])
        shared = shared | {key: mean[key] for key in BODY}
        assert_close(play.strategy.global_model, shared)
    for client in range(3):
        assert_close(play.personalised(client), own[client] | {key: shared[key] for key in BODY})


def test_with_mu_zero_it_is_fedavg_bit_by_bit() -> None:
    proximal, average = Play("fedprox", {"mu": 0.0}), Play("full")
    for server_round in proximal.rounds():
        average.round(server_round)
        assert_close(proximal.strategy.global_model, average.strategy.global_model, tolerance=0.0)


def test_a_negative_mu_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"mu = -0\.1 must be at least 0"):
        Play("fedprox", {"mu": -0.1})
