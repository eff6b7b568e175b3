"""FedBABU: the head stays as it was drawn."""

import pytest
from torch import nn

from fedsim.errors import ConfigError
from strategies import FedBabu
from tests.strategies.harness import Play, assert_close, descend, mean_of

BODY = ("fc1", "fc2")


def test_the_body_is_trained_under_the_initial_head_and_averaged() -> None:
    play = Play("fedbabu")
    expected = play.initial
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        trained = [
            descend(play.model, expected, play.batches(server_round, client), 0.1, trained=BODY) for client in there
        ]
        expected = expected | mean_of(trained, [play.sizes[client] for client in there])
        assert_close(play.strategy.global_model, expected)
        assert set(play.uploaded(0)) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    for client in range(3):  # whose model is the global one, since no head has changed
        assert_close(play.personalised(client), expected)
    assert expected["fc3.weight"].equal(play.initial["fc3.weight"])


def test_fine_tuning_trains_what_was_chosen() -> None:
    assert Play("fedbabu").strategy.fine_tuning() == "all"
    assert Play("fedbabu", {"fine_tuned": "head"}).strategy.fine_tuning() == "head"


def test_a_head_that_cannot_be_determined_is_asked_for_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 1))
    with pytest.raises(ValueError, match=r"'head' is not known: the model has no linear layer; .* layers are: 0, 1"):
        FedBabu(model)
    assert FedBabu(model, head="1").shared(1).layers == ("0",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "all"}, "head = 'all' leaves nothing to train in the other layers"),
        ({"fine_tuned": "fc9"}, "'fc9' matches nothing"),
    ],
)
def test_bad_options_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Play("fedbabu", options)
