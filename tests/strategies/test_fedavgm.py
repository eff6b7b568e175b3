"""FedAvgM against Flower's own."""

import pytest
import torch
from flwr.serverapp.strategy import FedAvgM as FlowerFedAvgM

from fedsim.errors import ConfigError
from fedsim.strategy import ClientUpdate
from fedsim.strategy.messages import decode, encode
from strategies import FedAvgM
from tests.strategies.harness import Mlp, Play, assert_close, mean_of, norm_mlp


def test_it_moves_the_model_as_flower_does() -> None:
    play = Play("fedavgm", {"server_lr": 0.7, "server_momentum": 0.6}, rounds=4)
    flower = FlowerFedAvgM(server_learning_rate=0.7, server_momentum=0.6)
    flower.current_arrays = encode(play.initial)
    for server_round in play.rounds():
        arrays, _ = flower.aggregate_train(server_round, list(play.replied.values()))
        assert_close(play.strategy.global_model, decode(arrays))


def test_without_momentum_and_with_full_steps_it_is_fedavg() -> None:
    moved, average = Play("fedavgm", {"server_momentum": 0.0}), Play("full")
    for server_round in moved.rounds():
        assert_close(moved.strategy.global_model, average.round(server_round))


def test_only_the_velocity_of_layers_that_were_averaged_changes() -> None:
    strategy = FedAvgM(Mlp().double(), server_momentum=0.5)
    strategy.set_global_model({key: torch.zeros_like(value) for key, value in Mlp().double().state_dict().items()})

    def average(layer: str, value: float) -> dict[str, float]:
        part = {key: torch.full_like(v, value) for key, v in strategy.global_model.items() if key.startswith(layer)}
        strategy.aggregate(1, [ClientUpdate(0, part, 1.0)])
        return {key.partition(".")[0]: velocity.flatten()[0].item() for key, velocity in strategy.state().items()}

    assert average("fc1", 1.0) == {"fc1": 1.0}
    assert average("fc2", 4.0) == {"fc1": 1.0, "fc2": 4.0}
    assert average("fc1", 1.0) == {"fc1": 1.5, "fc2": 4.0}


def test_running_statistics_are_averaged() -> None:
    play = Play("fedavgm", {"server_lr": 9.0}, model=norm_mlp)
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        mean = mean_of([play.uploaded(client) for client in there], [play.sizes[client] for client in there])
        for key in ("bn.running_mean", "bn.running_var"):
            torch.testing.assert_close(play.strategy.global_model[key], mean[key])


def test_only_the_shared_group_moves() -> None:
    play = Play("fedavgm", {"shared": "body"})
    for _ in play.rounds():
        assert set(play.uploaded(0)) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    assert torch.equal(play.strategy.global_model["fc3.weight"], play.initial["fc3.weight"])
    assert not any(key.startswith("fc3") for key in play.strategy.state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server_lr": 0.0}, "server_lr = 0.0 must be greater than 0"),
        ({"server_momentum": 1.0}, "server_momentum = 1.0 must be at least 0 and less than 1"),
        ({"shared": "fc9"}, "'fc9' matches nothing"),
    ],
)
def test_bad_options_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Play("fedavgm", options)
