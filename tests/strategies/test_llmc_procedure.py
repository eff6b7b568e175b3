"""The LLMC personalisation procedure: client models go on training, and one layer group is averaged now and then."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from fedsim.errors import ConfigError
from fedsim.models.params import state_of
from tests.strategies.harness import Play, assert_close

LOCAL = {"momentum": 0.9, "weight_decay": 0.01, "optimizer_state": "keep", "schedule": "cosine", "warmup": 2}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # of SequentialLR's own call
def test_client_models_optimisers_and_schedules_live_on_and_one_group_is_averaged_by_mini_batches() -> None:
    play = Play("llmc", {"shared": "fc2"}, local=LOCAL, absent={})
    models = [copy.deepcopy(play.model) for _ in range(3)]
    optimisers = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01) for model in models]
    batches = [2, 3, 1]  # of 5, 8 and 3 examples, by threes
    schedules = []
    for optimiser, steps in zip(optimisers, batches, strict=True):  # two epochs in each of three rounds
        rise = LinearLR(optimiser, 1 / 3, 1.0, total_iters=2)
        schedules.append(SequentialLR(optimiser, [rise, CosineAnnealingLR(optimiser, 6 * steps - 2)], [2]))
    average = dict(play.initial)
    for server_round in play.rounds():
        for client in range(3):
            models[client].load_state_dict({**models[client].state_dict(), **part(average)})
            drawn = play.batches(server_round, client, 2)
            assert len(drawn) == 2 * batches[client]
            for inputs, targets in drawn:
                optimisers[client].zero_grad()
                cross_entropy(models[client].train()(inputs), targets).backward()
                optimisers[client].step()
                schedules[client].step()
        average |= {
            key: sum(batches[client] / 6 * models[client].state_dict()[key] for client in range(3))
            for key in part(average)
        }
        assert_close(play.strategy.global_model, average)
        assert set(play.uploaded(0)) == {"fc2.weight", "fc2.bias"}
    for client in range(3):
        own = {key: value.detach() for key, value in state_of(models[client]).items()}
        assert_close(play.personalised(client), own | part(average))


def part(params: dict) -> dict:
    return {key: value for key, value in params.items() if key.startswith("fc2")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared": "fc9"}, "'fc9' matches nothing"),
        ({"epochs": 10}, r"'strategy.epochs' for 'llmc'.*known are: .*shared"),
    ],
)
def test_bad_options_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Play("llmc", options)
