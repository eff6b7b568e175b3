"""FedALA against the paper's and its authors' local initialisation, written down plainly."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.models.params import Params
from fedsim.seeds import rng
from fedsim.strategy.messages import sets_of
from strategies import FedAla
from tests.strategies.harness import Mlp, Play, assert_close, descend, gradient, mean_of, norm_mlp

LR, BATCH, SHARE = 0.1, 3, 0.7


def learn(
    play: Play, server_round: int, client: int, own: Params, taken: Params, weights: Params, first: bool, most: int
) -> tuple[Params, Params, int]:
    """Return the model that a client begins with, its weights, and the epochs in which it has learnt them."""
    inputs, targets = play.train_set(client)
    order = rng(0, "rule", server_round, client).permutation(len(targets))[: round(SHARE * len(targets))]
    losses: list[float] = []
    while True:
        for begin in range(0, len(order), BATCH):
            batch = inputs[order[begin : begin + BATCH]], targets[order[begin : begin + BATCH]]
            mixed = {key: own[key] + (taken[key] - own[key]) * weights[key] for key in weights}
            slopes = gradient(play.model, {**taken, **mixed}, batch)
            network = Mlp().double()
            network.load_state_dict({**taken, **mixed})
            loss = nn.functional.cross_entropy(network(batch[0]), batch[1]).item()
            weights = {
                key: torch.clamp(weights[key] - 2.0 * slopes[key] * (taken[key] - own[key]), 0, 1) for key in weights
            }
        losses.append(loss)
        if not first or (len(losses) > 10 and np.std(losses[-10:]) < 0.1) or len(losses) == most:
            break
    return {**taken, **{k: own[k] + (taken[k] - own[k]) * w for k, w in weights.items()}}, weights, len(losses)


@pytest.mark.parametrize("tensors", [2, 3, 6])
def test_three_rounds_are_those_of_the_paper(tensors: int) -> None:
    play = Play("fedala", {"tensors": tensors, "share": SHARE, "rate": 2.0}, rounds=4, absent={1: 2, 3: 1})
    w = play.initial
    mixed_keys = list(w)[-tensors:]
    ones = {key: torch.ones_like(w[key]) for key in mixed_keys}
    own, weights, learnt = [w] * 3, [ones] * 3, dict[int, int]()
    for server_round in play.rounds():
        trained, present = [], sorted(play.present(server_round))
        for client in present:
            begin = w
            if server_round > 1:
                first = client not in learnt
                begin, weights[client], epochs = learn(
                    play, server_round, client, own[client], w, weights[client], first, 100
                )
                learnt[client] = learnt.get(client, 0) + epochs
                assert play.kept(client)["ala_epochs"]["learnt"] == learnt[client]
                assert_close(play.kept(client)["ala_weights"], weights[client])
                assert epochs == (11 if first else 1)
            own[client] = descend(play.model, begin, play.batches(server_round, client), LR)
            trained.append(own[client])
            assert_close(play.uploaded(client), own[client])
        w = mean_of(trained, [play.sizes[client] for client in present])
        assert_close(play.strategy.global_model, w)
    assert any(value.min() < 0.999 for value in weights[0].values())


def test_a_model_is_evaluated_as_it_begins_the_next_round() -> None:
    play = Play("fedala", {"tensors": 2, "rate": 5.0})
    play.round(1)
    evaluated = play.personalised(0)
    taken, own = play.strategy.global_model, play.uploaded(0)
    assert all(evaluated[key].equal(taken[key]) for key in list(taken)[:-2])
    again = Play("fedala", {"tensors": 2, "rate": 5.0}, rounds=2)
    for _ in again.rounds():
        pass
    weights = again.kept(0)["ala_weights"]
    for key, value in weights.items():
        torch.testing.assert_close(evaluated[key], own[key] + (taken[key] - own[key]) * value)


def test_weights_of_1_are_fedavg() -> None:
    ala, full = Play("fedala", {"rate": 0.0}, model=norm_mlp), Play("full", model=norm_mlp)
    for server_round in ala.rounds():
        assert_close(ala.strategy.global_model, full.round(server_round), 0)
        for client in range(3):
            counter = {"bn.num_batches_tracked": ala.kept(client)["model"]["bn.num_batches_tracked"]}
            assert_close(ala.personalised(client), {**full.strategy.global_model, **counter}, 0)


def test_the_first_learning_ends_at_the_latest_after_so_many_epochs() -> None:
    play = Play("fedala", {"threshold": 1e-12, "share": 1.0, "max_epochs": 20})
    for server_round, learnt, passes in ((1, 0, 2), (2, 20, 22), (3, 21, 3)):
        play.round(server_round)
        assert play.kept(0)["ala_epochs"]["learnt"] == learnt
        metrics = play.received.updates[0].metrics
        assert metrics["uploaded/train/forward_examples"] == passes * play.sizes[0]


def test_the_weights_and_the_own_model_never_leave_the_client() -> None:
    play = Play("fedala")
    for _ in play.rounds():
        assert not any(sets_of(message.content) for message in (*play.sent.values(), *play.replied.values()))


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("tensors", 0, "at least 1"),
        ("tensors", 7, "at most 6"),
        ("share", 1.5, "greater than 0 and at most 1"),
        ("rate", -1.0, "must be at least 0"),
        ("threshold", 0.0, "greater than 0"),
        ("max_epochs", 10, "greater than 10"),
    ],
)
def test_bad_options_are_named(option: str, value: float, rule: str) -> None:
    with pytest.raises(ValueError, match=f"{option} = {value}.*{rule}"):
        FedAla(Mlp(), **{option: value})
