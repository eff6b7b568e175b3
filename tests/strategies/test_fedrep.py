"""FedRep: the head first, then the body."""

import pytest

from fedsim.errors import ConfigError
from tests.strategies.harness import Play, assert_close, descend, mean_of, part

BODY, HEAD = ("fc1", "fc2"), ("fc3",)


def test_clients_train_their_head_then_the_body_which_is_averaged() -> None:
    play = Play("fedrep", {"head_epochs": 3, "body_epochs": 2})
    shared, own = play.initial, dict.fromkeys(range(3), play.initial)
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        for client in there:
            stream = play.training_stream(server_round, client)
            model = own[client] | part(shared, BODY)
            model = descend(play.model, model, play.batches(server_round, client, 3, stream=stream), 0.1, trained=HEAD)
            model = descend(play.model, model, play.batches(server_round, client, 2, stream=stream), 0.1, trained=BODY)
            assert_close(play.uploaded(client), part(model, BODY))
            assert_close(part(play.kept(client)["model"], HEAD), part(model, HEAD))
            own[client] = model
        mean = mean_of([own[client] for client in there], [play.sizes[client] for client in there])
        shared = shared | part(mean, BODY)
        assert_close(play.strategy.global_model, shared)
    for client in range(3):
        assert_close(play.personalised(client), own[client] | part(shared, BODY))


def test_with_no_head_epochs_only_the_body_is_trained() -> None:
    play, babu = Play("fedrep", {"head_epochs": 0, "body_epochs": 2}), Play("fedbabu")
    for server_round in play.rounds():
        assert_close(play.strategy.global_model, babu.round(server_round), tolerance=0.0)
    for client in range(3):
        assert_close(part(play.personalised(client), HEAD), part(play.initial, HEAD), tolerance=0.0)


def test_the_head_is_trained_with_one_epoch_each() -> None:
    play = Play("fedrep", {"head_epochs": 1, "body_epochs": 1}, local={"epochs": 1}, rounds=1)
    play.round(1)
    assert not play.personalised(0)["fc3.weight"].equal(play.initial["fc3.weight"])
    assert play.strategy.fine_tuning() == "head"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_epochs": -1}, "head_epochs = -1 must be at least 0"),
        ({"body_epochs": 0}, "body_epochs = 0 must be at least 1"),
        ({"head": "all"}, "head = 'all' leaves nothing to train in the other layers; layers are: fc1, fc2, fc3"),
        ({"head": "none"}, "head = 'none' leaves nothing to train in the group itself"),
    ],
)
def test_bad_options_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Play("fedrep", options)
