"""q-FFL against algorithm 2 of its paper, written down plainly."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.strategies.harness import Play, assert_close, descend, network_of

LR = 0.1


@pytest.mark.parametrize("q", [0.3, 1.0, 5.0])
def test_rounds_are_those_of_the_algorithm(q: float) -> None:
    play, model = Play("qffl", {"q": q}), None
    for server_round in play.rounds():
        model = model or play.initial
        top, bottom = {key: torch.zeros_like(value) for key, value in model.items()}, 0.0
        for client in sorted(play.present(server_round)):
            inputs, targets = play.train_set(client)
            loss = float(cross_entropy(network_of(play.model, model)(inputs), targets).detach())
            trained = descend(play.model, model, play.batches(server_round, client), LR)
            gradient = {key: (model[key] - trained[key]) / LR for key in model}
            squared = sum(float(value.square().sum()) for value in gradient.values())
            for key in model:
                top[key] += play.sizes[client] * loss**q * gradient[key]
            bottom += play.sizes[client] * (q * loss ** (q - 1) * squared + loss**q / LR)
        model = {key: model[key] - top[key] / bottom for key in model}
        assert_close(play.strategy.global_model, model, tolerance=1e-8)


def test_with_q_of_0_it_is_fedavg() -> None:
    fair, average = Play("qffl", {"q": 0.0}), Play("full")
    for server_round in fair.rounds():
        assert_close(fair.strategy.global_model, average.round(server_round), tolerance=1e-12)
