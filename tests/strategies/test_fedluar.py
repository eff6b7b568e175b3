"""FedLUAR: layers that hardly change repeat their last update."""

from collections import Counter

import numpy as np
import pytest
import torch

from fedsim.errors import ConfigError
from fedsim.models.params import Params
from fedsim.seeds import rng
from fedsim.strategy import ClientUpdate
from strategies import FedLuar
from tests.strategies.harness import Mlp, Play, assert_close, descend, mean_of, norm_mlp

LAYERS = ("fc1", "fc2", "fc3")


def part(params: Params, layer: str) -> Params:
    return {key: value for key, value in params.items() if key.startswith(layer)}


def norm(params: Params) -> float:
    return torch.cat([value.flatten() for value in params.values()]).norm().item()


def test_some_layers_repeat_their_last_update_and_the_others_are_averaged() -> None:
    play = Play("fedluar", {"recycled": 0.4}, rounds=6)  # 1 of 3
    model, last, ratio, recycled, seen = play.initial, {}, {}, set(), set()
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        trained = [descend(play.model, model, play.batches(server_round, client), 0.1) for client in there]
        mean = mean_of(trained, [play.sizes[client] for client in there])
        for client in there:
            assert {key[:3] for key in play.uploaded(client)} == set(LAYERS) - recycled
        new = dict(model)
        for layer in LAYERS:
            if layer not in recycled:
                last |= {key: mean[key] - model[key] for key in part(mean, layer)}
                ratio[layer] = norm(part(last, layer)) / norm(part(model, layer))
            new |= {key: model[key] + last[key] for key in part(model, layer)}
        model = new
        assert_close(play.strategy.global_model, model)
        times = rng(0, "recycled layers", server_round).exponential(size=3)
        recycled = {min(LAYERS, key=lambda layer: ratio[layer] * times[LAYERS.index(layer)])}
        seen |= recycled
    assert len(seen) > 1


@pytest.mark.slow
def test_layers_are_drawn_without_replacement_with_odds_one_by_their_ratio() -> None:
    ratios = np.array([1.0, 2.0, 4.0])
    found: Counter[tuple[str, ...]] = Counter()
    strategy = FedLuar(Mlp(), recycled=0.7)  # 2 of 3
    strategy.memory["ratio"] = torch.from_numpy(ratios)
    for server_round in range(1, 2001):
        drawn = strategy.draw(server_round).tolist()
        found[tuple(layer for layer, is_drawn in zip(LAYERS, drawn, strict=True) if is_drawn)] += 1
    odds = (1 / ratios) / (1 / ratios).sum()
    for one, two in ((0, 1), (0, 2), (1, 2)):
        pair = odds[one] * odds[two] / (1 - odds[one]) + odds[two] * odds[one] / (1 - odds[two])
        # Four standard deviations.
        assert abs(found[LAYERS[one], LAYERS[two]] / 2000 - pair) < 4 * (pair * (1 - pair) / 2000) ** 0.5


def test_running_statistics_of_a_layer_that_repeats_its_update_stay_as_they_are() -> None:
    play, repeated = Play("fedluar", {"recycled": 0.5}, rounds=8, model=norm_mlp), 0
    for server_round in range(1, 9):
        before = play.strategy.global_model
        play.round(server_round)
        if "bn.running_var" not in play.uploaded(0):
            repeated += 1
            assert torch.equal(play.strategy.global_model["bn.running_var"], before["bn.running_var"])
    assert repeated


def test_a_layer_of_zeros_is_drawn_last() -> None:
    strategy = FedLuar(Mlp(), recycled=0.7)
    model = {key: torch.zeros_like(value) if "fc1" in key else value for key, value in Mlp().state_dict().items()}
    strategy.set_global_model(model)
    strategy.aggregate(1, [ClientUpdate(0, {key: value + 1 for key, value in model.items()}, 1.0)])
    assert strategy.shared(2).layers == ("fc1",)


def test_without_recycling_it_is_fedavg_bit_by_bit() -> None:
    luar, average = Play("fedluar", {"recycled": 0.0}), Play("full")
    for server_round in luar.rounds():
        assert_close(luar.strategy.global_model, average.round(server_round), tolerance=0.0)


@pytest.mark.parametrize("recycled", [-0.1, 1.0])
def test_a_share_out_of_range_is_rejected(recycled: float) -> None:
    with pytest.raises(ConfigError, match=f"recycled = {recycled} must be at least 0 and less than 1"):
        Play("fedluar", {"recycled": recycled})
