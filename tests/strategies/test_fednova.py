"""FedNova against equation 6 of its paper, with the closed forms of its coefficients."""

import pytest
import torch

from fedsim.errors import ConfigError
from fedsim.models.params import Params, state_of
from tests.strategies.harness import Batch, Play, assert_close, mean_of, network_of, norm_mlp

LR = 0.1


def descended(play: Play, params: Params, batches: list[Batch], momentum: float, weight_decay: float) -> Params:
    network = network_of(play.model, params)
    optimiser = torch.optim.SGD(network.parameters(), LR, momentum=momentum, weight_decay=weight_decay)
    for inputs, targets in batches:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs), targets).backward()
        optimiser.step()
    return {key: value.detach().clone() for key, value in state_of(network).items()}


def coefficient(steps: int, rho: float) -> float:
    """Return ||a_k||_1, as below equation 5 of the paper."""
    return float(steps) if not rho else (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.3)])
def test_rounds_are_those_of_the_equation(momentum: float, weight_decay: float) -> None:
    play = Play("fednova", local={"momentum": momentum, "weight_decay": weight_decay}, sizes=(5, 11, 3))
    expected = play.initial
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        batches = [play.batches(server_round, client) for client in there]
        trained = [descended(play, expected, each, momentum, weight_decay) for each in batches]
        shares = torch.tensor([float(play.sizes[client]) for client in there]).double()
        shares /= shares.sum()
        lengths = torch.tensor([coefficient(len(each), momentum) for each in batches], dtype=torch.float64)
        moves = [
            {key: (expected[key] - model[key]) / length for key in model}
            for model, length in zip(trained, lengths.tolist(), strict=True)
        ]
        mean = mean_of(moves, shares.tolist())
        expected = {key: expected[key] - float(shares @ lengths) * mean[key] for key in mean}
        assert_close(play.strategy.global_model, expected)


def test_equal_numbers_of_steps_are_fedavg() -> None:
    same = {"sizes": (4, 6, 5), "local": {"momentum": 0.9}}  # two batches each
    nova, average = Play("fednova", **same), Play("full", **same)
    for server_round in nova.rounds():
        assert_close(nova.strategy.global_model, average.round(server_round))


def test_running_statistics_are_averaged_by_examples() -> None:
    play = Play("fednova", model=norm_mlp)
    after = play.round(1)
    mean = mean_of([play.uploaded(client) for client in range(3)], play.sizes)
    for key in ("bn.running_mean", "bn.running_var"):
        torch.testing.assert_close(after[key], mean[key])


def test_it_is_refused_where_steps_are_no_sums_of_gradients() -> None:
    with pytest.raises(ConfigError, match=r"'FedNova' is defined for SGD with one step size, and local.optim"):
        Play("fednova", local={"optimizer": "adam"})
    with pytest.raises(ConfigError, match=r"local\.clip_norm = 1\.0; leave it out"):
        Play("fednova", local={"clip_norm": 1.0})
