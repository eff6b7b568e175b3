"""FedLWS against its equations, layer by layer."""

import pytest
import torch

from fedsim.models.params import Params
from tests.strategies.harness import Play, assert_close, descend, mean_of, norm_mlp


def layer_vector(model: Params, layer: str) -> torch.Tensor:
    return torch.cat([model[f"{layer}.{kind}"].flatten() for kind in ("weight", "bias")])


@pytest.mark.parametrize("options", [{"beta": 5.0, "least": 0.0, "most": 10.0}, {"least": 0.15}, {"beta": 5.0}])
def test_rounds_are_those_of_the_equations(options: dict[str, float]) -> None:
    play = Play("fedlws", options)
    beta, least, most = ({"beta": 0.03, "least": 0.01, "most": 0.2} | options).values()
    expected = play.initial
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        trained = [descend(play.model, expected, play.batches(server_round, client), 0.1) for client in there]
        averaged = mean_of(trained, [play.sizes[client] for client in there])
        for layer in ("fc1", "fc2", "fc3"):
            before = layer_vector(expected, layer)
            updates = torch.stack([layer_vector(model, layer) - before for model in trained])
            apart = float((updates - updates.mean(0)).norm(dim=1).mean())
            tau = min(max(beta * apart, least), most)
            moved = float((layer_vector(averaged, layer) - before).norm())
            gamma = float(before.norm()) / (float(before.norm()) + tau * moved)
            averaged |= {key: gamma * value for key, value in averaged.items() if key.startswith(layer)}
        expected = averaged
        assert_close(play.strategy.global_model, expected)


def test_without_shrinking_it_is_fedavg() -> None:
    shrinking, average = Play("fedlws", {"beta": 0.0, "least": 0.0}), Play("full")
    for server_round in shrinking.rounds():
        assert_close(shrinking.strategy.global_model, average.round(server_round), tolerance=0.0)


def test_running_statistics_do_not_shrink() -> None:
    shrinking, average = (Play(name, model=norm_mlp) for name in ("fedlws", "full"))
    after, mean = shrinking.round(1), average.round(1)
    for key in ("bn.running_mean", "bn.running_var"):
        assert torch.equal(after[key], mean[key])


def test_tau_has_a_range() -> None:
    with pytest.raises(ValueError, match=r"least = 0\.5 must be at most most = 0\.2"):
        Play("fedlws", {"least": 0.5})
