"""FedExP against algorithm 1 of its paper."""

import torch

from tests.strategies.harness import Play, assert_close, descend, mean_of


def test_rounds_are_those_of_the_algorithm() -> None:
    play, factors = Play("fedexp", {"epsilon": 1e-4}), []
    expected = play.initial
    for server_round in play.rounds():
        there = sorted(play.present(server_round))
        trained = [descend(play.model, expected, play.batches(server_round, client), 0.1) for client in there]
        updates = [torch.cat([(model[key] - expected[key]).flatten() for key in model]) for model in trained]
        mean = torch.stack(updates).mean(0)
        apart = sum(float(update @ update) for update in updates)
        factors.append(max(1.0, apart / (2 * len(there) * (float(mean @ mean) + 1e-4))))
        averaged = mean_of(trained, [1] * len(there))
        expected = {key: expected[key] + factors[-1] * (averaged[key] - expected[key]) for key in averaged}
        assert_close(play.strategy.global_model, expected)


def test_clients_that_pull_apart_are_gone_beyond() -> None:
    def opposed(client: int, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs, torch.full_like(targets, client)

    play, average = (Play(name, sizes=(4, 4, 4), change=opposed) for name in ("fedexp", "full"))
    moves = [{key: value - play.initial[key] for key, value in each.round(1).items()} for each in (play, average)]
    ratios = torch.cat([(moves[0][key] / moves[1][key]).flatten() for key in moves[0]])
    assert ratios.min() > 1.05
    torch.testing.assert_close(ratios, ratios[0].expand_as(ratios), rtol=1e-8, atol=0.0)
