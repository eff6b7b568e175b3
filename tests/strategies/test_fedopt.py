"""FedAvgM against Flower's; FedAdam, FedYogi and FedAdagrad against the paper, and Flower's less known differences."""

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate
from fedsim.strategy.messages import decode, encode
from strategies import FedAdam as OwnFedAdam
from strategies import FedAvgM as OwnFedAvgM
from tests.strategies.harness import Mlp, Play, assert_close, mean_of, norm_mlp

BETA_1, BETA_2, TAU, LR = 0.8, 0.95, 0.02, 0.3
DECAYS = {"beta_1": BETA_1, "beta_2": BETA_2}
OPTIONS = {"fedadam": DECAYS, "fedyogi": DECAYS, "fedadagrad": {"beta_1": BETA_1}}
every = pytest.mark.parametrize("name", OPTIONS)


def play_of(name: str, **settings: object) -> Play:
    return Play(name, {"server_lr": LR, "tau": TAU, **OPTIONS[name]}, rounds=4, **settings)


def second(name: str, v: Tensor, squared: Tensor) -> Tensor:
    if name == "fedadam":
        return BETA_2 * v + (1 - BETA_2) * squared
    if name == "fedyogi":
        return v - (1 - BETA_2) * squared * torch.sign(v - squared)
    return v + squared


@every
def test_it_moves_the_model_as_the_paper_says(name: str) -> None:
    play = play_of(name)
    model = play.initial
    m = {key: torch.zeros_like(value) for key, value in model.items()}
    v = {key: torch.full_like(value, TAU**2) for key, value in model.items()}
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        mean = mean_of([play.uploaded(client) for client in there], [play.sizes[client] for client in there])
        delta = {key: mean[key] - model[key] for key in model}
        m = {key: BETA_1 * m[key] + (1 - BETA_1) * delta[key] for key in m}
        v = {key: second(name, v[key], delta[key] ** 2) for key in v}
        model = {key: model[key] + LR * m[key] / (v[key].sqrt() + TAU) for key in model}
        assert_close(play.strategy.global_model, model)
        state = play.strategy.state()
        assert_close(state, {f"first/{key}": m[key] for key in m} | {f"second/{key}": v[key] for key in v})


@every
def test_flowers_is_the_same_once_its_second_moment_begins_at_tau_squared_without_bias_correction(name: str) -> None:
    play = play_of(name)
    flower: FedAdam | FedYogi | FedAdagrad
    if name == "fedadagrad":
        flower = FedAdagrad(eta=LR, tau=TAU)
        flower.beta_1 = BETA_1  # which Flower sets to 0
    else:
        flower = {"fedadam": FedAdam, "fedyogi": FedYogi}[name](eta=LR, beta_1=BETA_1, beta_2=BETA_2, tau=TAU)
    flower.v_t = {key: np.full(value.shape, TAU**2) for key, value in play.initial.items()}
    for server_round in range(1, 5):
        flower.current_arrays = {key: value.numpy().copy() for key, value in play.strategy.global_model.items()}
        if name == "fedadam":
            flower.eta = LR * (1 - BETA_1 ** (server_round + 1)) / np.sqrt(1 - BETA_2 ** (server_round + 1))
        play.round(server_round)
        arrays, _ = flower.aggregate_train(server_round, list(play.replied.values()))
        assert_close(play.strategy.global_model, decode(arrays))


@every
def test_moments_change_only_in_rounds_in_which_their_layer_is_averaged(name: str) -> None:
    def after(layers: str) -> dict[str, Params]:
        strategy = play_of(name).strategy
        found = {}
        for number, layer in enumerate(layers, 1):
            part = {key: value + number for key, value in strategy.global_model.items() if key[2] == layer}
            averaged = strategy.aggregate(number, [ClientUpdate(0, part, 1.0)])
            assert averaged.keys() == part.keys()
            found[layer] = {key: value for key, value in strategy.state().items() if f"fc{layer}" in key}
        return found

    # What layer 1 remembers after its rounds 1 and 3 does not depend on what is averaged in round 2.
    assert_close(after("121")["1"], after("131")["1"], tolerance=0.0)
    assert after("12")["1"].keys() == {f"{moment}/fc1.{key}" for moment in ("first", "second") for key in PARTS}


PARTS = ("weight", "bias")


@pytest.mark.parametrize("name", ["fedavgm", *OPTIONS])
def test_running_statistics_are_averaged(name: str) -> None:
    play = Play(name, {"server_lr": 9.0}, model=norm_mlp)
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        mean = mean_of([play.uploaded(client) for client in there], [play.sizes[client] for client in there])
        for key in ("bn.running_mean", "bn.running_var"):
            torch.testing.assert_close(play.strategy.global_model[key], mean[key])


def test_moments_of_a_float32_model_are_float64() -> None:
    strategy = OwnFedAdam(Mlp())
    strategy.set_global_model(dict(Mlp().state_dict()))
    strategy.aggregate(1, [ClientUpdate(0, dict(Mlp().state_dict()), 1.0)])
    assert {value.dtype for value in strategy.state().values()} == {torch.float64}


def test_fedavgm_moves_the_model_as_flower_does() -> None:
    play = Play("fedavgm", {"server_lr": 0.7, "server_momentum": 0.6}, rounds=4)
    flower = FedAvgM(server_learning_rate=0.7, server_momentum=0.6)
    flower.current_arrays = encode(play.initial)
    for server_round in play.rounds():
        arrays, _ = flower.aggregate_train(server_round, list(play.replied.values()))
        assert_close(play.strategy.global_model, decode(arrays))


def test_fedavgm_without_momentum_and_with_full_steps_is_fedavg() -> None:
    moved, average = Play("fedavgm", {"server_momentum": 0.0}), Play("full")
    for server_round in moved.rounds():
        assert_close(moved.strategy.global_model, average.round(server_round))


def test_only_the_velocity_of_layers_that_were_averaged_changes() -> None:
    strategy = OwnFedAvgM(Mlp().double(), server_momentum=0.5)
    strategy.set_global_model({key: torch.zeros_like(value) for key, value in Mlp().double().state_dict().items()})

    def average(layer: str, value: float) -> dict[str, float]:
        part = {key: torch.full_like(v, value) for key, v in strategy.global_model.items() if key.startswith(layer)}
        strategy.aggregate(1, [ClientUpdate(0, part, 1.0)])
        return {key.partition(".")[0]: velocity.flatten()[0].item() for key, velocity in strategy.state().items()}

    assert average("fc1", 1.0) == {"fc1": 1.0}
    assert average("fc2", 4.0) == {"fc1": 1.0, "fc2": 4.0}
    assert average("fc1", 1.0) == {"fc1": 1.5, "fc2": 4.0}


def test_only_the_shared_group_moves() -> None:
    play = Play("fedavgm", {"shared": "body"})
    for _ in play.rounds():
        assert set(play.uploaded(0)) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    assert torch.equal(play.strategy.global_model["fc3.weight"], play.initial["fc3.weight"])
    assert not any(key.startswith("fc3") for key in play.strategy.state())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fedavgm", {"server_lr": 0.0}, "server_lr = 0.0 must be greater than 0"),
        ("fedavgm", {"server_momentum": 1.0}, "server_momentum = 1.0 must be at least 0 and less than 1"),
        ("fedavgm", {"shared": "fc9"}, "'fc9' matches nothing"),
        ("fedadam", {"server_lr": 0.0}, "server_lr = 0.0 must be greater than 0"),
        ("fedyogi", {"tau": 0.0}, "tau = 0.0 must be greater than 0"),
        ("fedadagrad", {"beta_1": 1.0}, "beta_1 = 1.0 must be at least 0 and less than 1"),
        ("fedadam", {"beta_2": 1.0}, "beta_2 = 1.0 must be at least 0 and less than 1"),
        ("fedadagrad", {"beta_2": 0.9}, "unknown key 'strategy.beta_2'"),
    ],
)
def test_bad_options_are_rejected(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Play(name, options)
