"""Ditto against its algorithm 1, written down plainly."""

from collections.abc import Callable

import pytest
from torch import nn

from fedsim.models.params import Params
from strategies import Ditto
from tests.strategies.harness import Mlp, Play, assert_close, descend, mean_of, norm_mlp

LR = 0.1


@pytest.mark.parametrize("model", [Mlp, norm_mlp])
def test_three_rounds_are_those_of_the_algorithm(model: Callable[[], nn.Module]) -> None:
    play = Play("ditto", {"proximal": 0.8, "personal_epochs": 3}, model=model, absent={1: 2, 2: 1})
    w = play.initial
    personal: dict[int, Params] = {}
    for server_round in play.rounds():
        trained, present = [], sorted(play.present(server_round))
        for client in present:
            stream = play.training_stream(server_round, client)
            batches = play.batches(server_round, client, 3, stream=stream)
            v = personal.get(client, w)  # client 2 begins with the global model of round 2
            personal[client] = descend(play.model, v, batches, LR, mu=0.8, toward=w)
            trained.append(descend(play.model, w, play.batches(server_round, client, stream=stream), LR))
            assert_close(play.kept(client)["personal"], personal[client])
        mean = mean_of(trained, [play.sizes[client] for client in present])
        w = {key: mean.get(key, value) for key, value in w.items()}
        assert_close(play.strategy.global_model, w)
    for client, expected in personal.items():
        assert_close(play.personalised(client), expected)


def test_lambda_0_is_local_training_next_to_fedavg() -> None:
    # In one batch an epoch, so that the order of the examples does not matter.
    settings = {"local": {"batch_size": 8}, "absent": {2: 1}}
    ditto, local, full = (
        Play("ditto", {"proximal": 0.0}, **settings),
        Play("local", **settings),
        Play("full", **settings),
    )
    for server_round in ditto.rounds():
        local.round(server_round)
        assert_close(ditto.strategy.global_model, full.round(server_round), 1e-12)
        for client in range(3):
            assert_close(ditto.personalised(client), local.personalised(client), 1e-12)


def test_the_personal_models_passes_count_too() -> None:
    play = Play("ditto", {"personal_epochs": 3})
    play.round(1)
    for update in play.received.updates:
        assert update.metrics["uploaded/train/backward_examples"] == (3 + 2) * play.sizes[update.client]


def test_a_client_that_never_trained_is_evaluated_with_the_global_model() -> None:
    play = Play("ditto", absent={1: 2})
    assert_close(play.round(1), play.personalised(2), 0)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"proximal = -1 must be at least 0"):
        Ditto(Mlp(), proximal=-1)
    with pytest.raises(ValueError, match=r"personal_epochs = 0 must be at least 1"):
        Ditto(Mlp(), personal_epochs=0)
