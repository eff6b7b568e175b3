"""pFedSim against its definition, written down plainly."""

import math

import torch

from fedsim.models.params import Params
from strategies.pfedsim import OWN
from tests.strategies.harness import Play, assert_close, descend, mean_of

HEAD = ("fc3.weight", "fc3.bias")


def similarity(one: Params, other: Params) -> float:
    a, b = (torch.cat([model[key].flatten() for key in HEAD]) for model in (one, other))
    return max(0.0, float(a @ b / a.norm() / b.norm()))


def test_five_rounds_are_those_of_the_definition() -> None:
    play = Play("pfedsim", {"warm_up": 2}, rounds=5, absent={2: 1, 4: 0})
    model, last = play.initial, dict[int, Params]()
    weights = {(i, j): -math.log(1 - OWN) * (i == j) for i in range(3) for j in range(3)}
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        started = {}
        for client in there:
            started[client] = model
            if server_round > 2:
                shares = [weights[client, other] for other in last]
                body = mean_of(list(last.values()), shares)
                started[client] = {key: last[client][key] if key in HEAD else body[key] for key in model}
        for client in there:
            last[client] = descend(play.model, started[client], play.batches(server_round, client), 0.1)
            assert_close(play.uploaded(client), last[client])
        for i in there:
            for j in there:
                if i != j:
                    weights[i, j] = -math.log(1 - similarity(last[i], last[j]))
        model = mean_of([last[client] for client in there], [play.sizes[client] for client in there])
        assert_close(play.strategy.global_model, model)
    assert len({round(value, 6) for value in weights.values()}) == 4  # three pairs and a client with itself
    for client in range(3):
        body = mean_of(list(last.values()), [weights[client, other] for other in last])
        assert_close(play.personalised(client), {k: last[client][k] if k in HEAD else body[k] for k in model})


def test_before_the_end_of_the_warm_up_it_is_fedavg() -> None:
    similar, average = Play("pfedsim", {"warm_up": 3}), Play("full")
    for server_round in similar.rounds():
        assert_close(similar.strategy.global_model, average.round(server_round), tolerance=0.0)


def test_a_client_that_comes_late_begins_with_the_global_model() -> None:
    play = Play("pfedsim", {"warm_up": 1}, rounds=3, absent={1: 2, 2: 2})
    play.round(1)
    before = play.round(2)
    play.train(3)
    assert_close(play.downloaded(2), before)
    assert set(play.downloaded(0)) == set(before) - set(HEAD)
