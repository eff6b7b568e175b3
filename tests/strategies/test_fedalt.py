"""FedAlt and FedSim: personal and shared layers one after the other, or together."""

import pytest

from fedsim.errors import ConfigError
from fedsim.models.params import Params
from tests.strategies.harness import Play, assert_close, descend, mean_of, part

PERSONAL, SHARED = ("fc1",), ("fc2", "fc3")


def train(play: Play, model: Params, server_round: int, client: int) -> Params:
    if play.config.strategy.name == "fedsim":
        return descend(play.model, model, play.batches(server_round, client), 0.1)
    stream = play.training_stream(server_round, client)
    model = descend(play.model, model, play.batches(server_round, client, 3, stream=stream), 0.1, trained=PERSONAL)
    return descend(play.model, model, play.batches(server_round, client, stream=stream), 0.1, trained=SHARED)


@pytest.mark.parametrize(("name", "options"), [("fedalt", {"personal_epochs": 3}), ("fedsim", {})])
def test_shared_layers_are_averaged_and_personal_ones_stay(name: str, options: dict) -> None:
    play = Play(name, {"personal": "fc1", **options})  # the input layer, which no other method keeps
    shared, own = play.initial, dict.fromkeys(range(3), play.initial)
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        for client in there:
            own[client] = train(play, own[client] | part(shared, SHARED), server_round, client)
            assert_close(play.uploaded(client), part(own[client], SHARED))
            assert_close(part(play.kept(client)["model"], PERSONAL), part(own[client], PERSONAL))
        mean = mean_of([own[client] for client in there], [play.sizes[client] for client in there])
        shared = shared | part(mean, SHARED)
        assert_close(play.strategy.global_model, shared)
    for client in range(3):
        assert_close(play.personalised(client), own[client] | part(shared, SHARED))


def test_with_the_head_personal_they_are_fedrep_and_fedper() -> None:
    alternating, rep = Play("fedalt"), Play("fedrep", {"head_epochs": 2, "body_epochs": 2})
    together, per = Play("fedsim"), Play("layer_set", {"shared": "body"})
    for server_round in alternating.rounds():
        assert_close(alternating.strategy.global_model, rep.round(server_round), tolerance=0.0)
        assert_close(together.round(server_round), per.round(server_round), tolerance=0.0)


def test_personal_layers_are_fine_tuned() -> None:
    assert Play("fedalt", {"personal": "fc1"}).strategy.fine_tuning() == "fc1"
    assert Play("fedsim").strategy.fine_tuning() == "head"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fedalt", {"personal_epochs": 0}, "personal_epochs = 0 must be at least 1"),
        ("fedalt", {"shared_epochs": 0}, "shared_epochs = 0 must be at least 1"),
        ("fedalt", {"personal": "none"}, "personal = 'none' leaves nothing to train in the group itself"),
        ("fedsim", {"personal": "all"}, "personal = 'all' leaves nothing to train in the other layers"),
    ],
)
def test_bad_options_are_rejected(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Play(name, options)
