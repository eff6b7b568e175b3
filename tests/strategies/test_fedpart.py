"""FedPart: the authors' schedule, and what is frozen in it."""

import pytest
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.architectures import MODELS
from strategies import FedPart
from tests.strategies.harness import Mlp, Play, assert_close, descend, mean_of, norm_mlp


def test_only_the_group_whose_turn_it_is_is_trained_and_averaged() -> None:
    turns = [("fc1", "bn", "fc2", "fc3"), ("fc1", "bn"), ("fc2",), ("fc3",), ("fc1", "bn", "fc2", "fc3")]
    play = Play("fedpart", {"warm_up": 1, "rounds_each": 1}, rounds=5, absent={2: 1}, model=norm_mlp)
    expected = play.initial
    for server_round, layers in zip(play.rounds(), turns, strict=True):
        there = sorted(play.present(server_round))
        trained = [
            descend(play.model, expected, play.batches(server_round, client), 0.1, trained=layers) for client in there
        ]
        assert {key.rpartition(".")[0] for key in play.uploaded(0)} == set(layers)
        mean = mean_of(trained, [play.sizes[client] for client in there])
        expected = expected | {key: value for key, value in mean.items() if key.rpartition(".")[0] in layers}
        floats = {key: value for key, value in expected.items() if value.is_floating_point()}
        assert_close({key: play.strategy.global_model[key] for key in floats}, floats)


def test_the_schedule_is_five_full_rounds_then_two_for_each_group_and_again() -> None:
    strategy = FedPart(Mlp())
    shared = [strategy.shared(server_round).layers for server_round in range(1, 23)]
    one = [("fc1", "fc2", "fc3")] * 5 + [("fc1",)] * 2 + [("fc2",)] * 2 + [("fc3",)] * 2
    assert shared == one * 2
    assert [phase.trainable for phase in strategy.local_plan(6).phases] == ["[f]c1"]


def test_a_resnet_18_has_the_papers_21_groups() -> None:
    model = MODELS["resnet18"]((3, 32, 32), 10, norm="batch")
    strategy = FedPart(model, warm_up=0, rounds_each=1)
    groups = [strategy.shared(server_round).layers for server_round in range(1, 22)]
    assert strategy.shared(22).layers == groups[0]
    assert groups[0] == ("conv1", "bn1")
    assert groups[-1] == ("fc",)
    assert all(len(group) == 2 for group in groups[:-1])
    assert [layer for group in groups for layer in group] == list(strategy.layers.names)


def test_layers_that_are_called_like_words_of_the_language_are_groups_of_their_own() -> None:
    class Awkward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all, self.norm = nn.Linear(4, 6), nn.LayerNorm(6)
            self.head, self.other, self.ln = nn.Linear(6, 6), nn.Linear(6, 3), nn.LayerNorm(3)

    strategy = FedPart(Awkward(), warm_up=0, rounds_each=1)
    assert [strategy.shared(number).layers for number in (1, 2, 3)] == [("all", "norm"), ("head",), ("other", "ln")]
    trained = strategy.local_plan(1).phases[0].trainable
    assert strategy.layers.group(trained).layers == ("all", "norm")


def test_with_all_layers_in_each_round_it_is_fedavg_bit_by_bit() -> None:
    parts, average = Play("fedpart", {"groups": ["all"], "warm_up": 1}), Play("full")
    for server_round in parts.rounds():
        assert_close(parts.strategy.global_model, average.round(server_round), tolerance=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warm_up": -1}, "warm_up = -1 must be at least 0"),
        ({"rounds_each": 0}, "rounds_each = 0 must be at least 1"),
        ({"groups": ["fc1", "none"]}, "groups has 'none', which leaves nothing to train; layers are: fc1, fc2, fc3"),
    ],
)
def test_bad_options_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Play("fedpart", options)
