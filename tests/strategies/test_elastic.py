"""Elastic aggregation against its definition."""

import math

import pytest
import torch

from fedsim.models.params import Params
from fedsim.seeds import rng
from tests.strategies.harness import Play, assert_close, descend, gradient, mean_of, norm_mlp

LAYERS = ("fc1", "fc2", "fc3")


def sensitivity(play: Play, params: Params, server_round: int, client: int, share: float, decay: float) -> torch.Tensor:
    inputs, targets = play.train_set(client)
    order = rng(play.config.seed, "rule", server_round, client).permutation(len(targets))
    drawn, found = torch.from_numpy(order[: math.ceil(share * len(targets))]), torch.zeros(3).double()
    for start in range(0, len(drawn), 3):
        slopes = gradient(play.model, params, (inputs[drawn[start : start + 3]], targets[drawn[start : start + 3]]))
        squares = [sum(float((v**2).sum()) for key, v in slopes.items() if key.startswith(name)) for name in LAYERS]
        found = decay * found + (1 - decay) * torch.tensor(squares, dtype=torch.float64)
    return found


@pytest.mark.parametrize(("share", "decay", "tau"), [(0.3, 0.95, 0.5), (1.0, 0.5, 0.2)])
def test_rounds_are_those_of_the_definition(share: float, decay: float, tau: float) -> None:
    play = Play("elastic", {"share": share, "decay": decay, "tau": tau})
    model = play.initial
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        trained = [descend(play.model, model, play.batches(server_round, client), 0.1) for client in there]
        found = torch.stack([sensitivity(play, model, server_round, client, share, decay) for client in there])
        zeta = dict(zip(LAYERS, (1 + tau - found.mean(0) / found.max(0).values).tolist(), strict=True))
        mean = mean_of(trained, [play.sizes[client] for client in there])
        model = {key: model[key] + zeta[key.partition(".")[0]] * (mean[key] - model[key]) for key in mean}
        assert_close(play.strategy.global_model, model)


def test_running_statistics_are_averaged() -> None:
    elastic, average = (Play(name, model=norm_mlp).round(1) for name in ("elastic", "full"))
    for key in ("bn.running_mean", "bn.running_var"):
        assert torch.equal(elastic[key], average[key])
