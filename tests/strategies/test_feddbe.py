"""FedDBE against its equations, by plain autograd over a shift that is added to the features."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.errors import ConfigError
from fedsim.models.params import Params, state_of
from tests.strategies.harness import Batch, Play, assert_close, descend, mean_of, network_of


def body(network: nn.Module, inputs: Tensor) -> Tensor:
    return torch.tanh(network.fc2(torch.tanh(network.fc1(inputs))))  # type: ignore[operator]


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
