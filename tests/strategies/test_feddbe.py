"""FedDBE against its equations, by plain autograd over a shift that is added to the features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.errors import ConfigError
from fedsim.models.params import Params, state_of
from fedsim.strategy import Phase, Step
from fedsim.training import SGD, Local, Network
from strategies.feddbe import FedDbeRule
from tests.strategies.harness import Batch, Play, assert_close, body, descend, mean_of, network_of, words_model


def shifted(
    play: Play, params: Params, shift: Tensor, batches: list[Batch], mean: Tensor, kappa: float
) -> tuple[Params, Tensor]:
    network, own = network_of(play.model, params), shift.clone().requires_grad_()
    weights = [*network.parameters(), own]
    for inputs, targets in batches:
        features = body(network, inputs)
        loss = cross_entropy(network.fc3(features + own), targets)  # type: ignore[operator]
        loss = loss + kappa * (0.5 * (features.mean(0) - mean) ** 2).mean()
        with torch.no_grad():
            for value, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                value -= 0.1 * slope
    return {key: value.detach().clone() for key, value in state_of(network).items()}, own.detach()


@pytest.mark.parametrize("kappa", [0.0, 5.0])
def test_rounds_are_those_of_the_equations(kappa: float) -> None:
    play = Play("feddbe", {"kappa": kappa}, rounds=4)
    model, shifts, mean = play.initial, [torch.zeros(5, dtype=torch.float64)] * 3, torch.empty(0)
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        sizes, trained = [play.sizes[client] for client in there], []
        for client in there:
            batches = play.batches(server_round, client)
            if server_round == 1:
                trained.append(descend(play.model, model, batches, 0.1))
            else:
                found, shifts[client] = shifted(play, model, shifts[client], batches, mean, kappa)
                trained.append(found)
                torch.testing.assert_close(play.kept(client)["shift"]["value"], shifts[client])
            assert_close(play.uploaded(client), trained[-1])
        if server_round == 1:
            features = [body(network_of(play.model, each), play.train_set(k)[0]) for k, each in enumerate(trained)]
            mean = sum(n * each.mean(0) for n, each in zip(sizes, features, strict=True)).detach() / sum(sizes)
        model = mean_of(trained, sizes)
        assert_close(play.strategy.global_model, model)
    for client in range(3):
        inputs = play.train_set(client)[0]
        personal, network = network_of(play.model, play.personalised(client)), network_of(play.model, model)
        expected = network.fc3(body(network, inputs) + shifts[client])  # type: ignore[operator]
        torch.testing.assert_close(personal(inputs), expected)
    assert all(shift.abs().max() > 1e-3 for shift in shifts)


def test_a_head_without_a_bias_is_refused() -> None:
    class NoBias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc3 = nn.Linear(4, 5), nn.Linear(5, 3, bias=False)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.fc3(torch.tanh(self.fc1(inputs)))

    with pytest.raises((ConfigError, ValueError), match="head = 'head' is fc3; it must be a linear layer with a bias"):
        Play("feddbe", model=NoBias)


def test_positions_of_sequences_that_do_not_count_are_in_no_mean() -> None:
    predictor = words_model(5)
    params = {key: value.detach() for key, value in predictor.state_dict().items()}
    tokens, targets = torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.tensor([[1, -100, 0], [-100, 2, 1]])
    features, rule = params["0.weight"][tokens], FedDbeRule(predictor, head="1", kappa=2.0)
    sets = {"shift": {"value": torch.ones(5).double()}, "consensus": {"mean": torch.arange(5.0).double()}}
    step = Step(params, sets, {}, tokens, targets, targets != -100, 0, Phase(), 0.1, Network(predictor))
    logits = (features + 1) @ params["1.weight"].T + params["1.bias"]
    apart = features[targets != -100].mean(0) - torch.arange(5)
    expected = cross_entropy(logits.transpose(1, 2), targets) + 2 * 0.5 * apart.square().mean()
    torch.testing.assert_close(rule.loss(step), expected)

    settings, stream = SGD(batch_size=1), np.random.default_rng(0)
    local = Local(1, 0, params, sets, params, tokens, targets, settings, stream, Network(predictor))
    sent = rule.finish(local, replace(local, sets={})).sent["features"]["mean"]
    torch.testing.assert_close(sent, features[targets != -100].mean(0))
