"""The LLMC personalisation procedure: client models go on training, and one layer group is averaged now and then."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsim.errors import ConfigError
from fedsim.models.params import state_of
from strategies import Llmc
from tests.strategies.harness import Mlp, Play, assert_close

OPTIONS = {"shared": "fc2", "epochs": 2, "rounds": 3, "lr": 0.2, "warm_up": 2}
RATES = [0.2 / 3, 0.4 / 3, *(0.1 * (1 + math.cos(math.pi * k / 4)) for k in range(4))]


def test_client_models_and_their_optimisers_live_on_and_one_group_is_averaged_by_mini_batches() -> None:
    play = Play("llmc", OPTIONS, local={"momentum": 0.9, "weight_decay": 0.01, "optimizer_state": "keep"})
    models = [copy.deepcopy(play.model) for _ in range(3)]
    optimisers = [torch.optim.SGD(model.parameters(), 1.0, momentum=0.9, weight_decay=0.01) for model in models]
    batches = [2, 3, 1]  # of 5, 8 and 3 examples, by threes
    average = dict(play.initial)
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        for client in there:
            models[client].load_state_dict({**models[client].state_dict(), **part(average)})
            drawn = play.batches(server_round, client, 2)
            assert len(drawn) == 2 * batches[client]
            for step, (inputs, targets) in enumerate(drawn):
                epoch = 2 * (server_round - 1) + step // batches[client]
                optimisers[client].param_groups[0]["lr"] = RATES[epoch]
                optimisers[client].zero_grad()
                cross_entropy(models[client].train()(inputs), targets).backward()
                optimisers[client].step()
        total = sum(batches[client] for client in there)
        average |= {
            key: sum(batches[client] / total * models[client].state_dict()[key] for client in there)
            for key in part(average)
        }
        assert_close(play.strategy.global_model, average)
        assert set(play.uploaded(0)) == {"fc2.weight", "fc2.bias"}
    for client in range(3):
        own = {key: value.detach() for key, value in state_of(models[client]).items()}
        assert_close(play.personalised(client), own | part(average))


def part(params: dict) -> dict:
    return {key: value for key, value in params.items() if key.startswith("fc2")}


def test_the_step_size_rises_in_equal_steps_and_falls_by_half_a_cosine() -> None:
    strategy = Llmc(Mlp(), **OPTIONS)
    plans = [strategy.local_plan(server_round) for server_round in range(1, 5)]
    assert [phase.lr for plan in plans[:3] for phase in plan.phases] == pytest.approx(RATES)
    assert [phase.lr for phase in plans[3].phases] == pytest.approx([RATES[-1]] * 2)
    assert all(phase.epochs == 1 for plan in plans for phase in plan.phases)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs = 0 must be at least 1"),
        ({"rounds": 0}, "rounds = 0 must be at least 1"),
        ({"lr": 0.0}, "lr = 0.0 must be greater than 0"),
        ({"warm_up": 100}, "warm_up = 100 must be less than all 100 epochs"),
        ({"shared": "fc9"}, "'fc9' matches nothing"),
    ],
)
def test_bad_options_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Play("llmc", options)
