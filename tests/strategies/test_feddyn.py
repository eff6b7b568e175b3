"""FedDyn against algorithm 1 of its paper."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.strategies.harness import Batch, Play, assert_close, descend, mean_of


@pytest.mark.parametrize("alpha", [0.1, 0.8])
def test_rounds_are_those_of_the_algorithm(alpha: float) -> None:
    play = Play("feddyn", {"alpha": alpha}, rounds=4)
    model, zeros = play.initial, {key: torch.zeros_like(value) for key, value in play.initial.items()}
    own, server = [zeros] * 3, zeros
    for server_round in play.rounds():
        there, trained, start = sorted(play.present(server_round)), [], model
        for client in there:
            slope = own[client]

            def loss(network: torch.nn.Module, batch: Batch, start=start, slope=slope) -> torch.Tensor:  # type: ignore[no-untyped-def]
                weights = dict(network.named_parameters())
                linear = sum((slope[key] * value).sum() for key, value in weights.items())
                near = sum((value - start[key]).square().sum() for key, value in weights.items())
                return cross_entropy(network(batch[0]), batch[1]) - linear + alpha / 2 * near

            trained.append(descend(play.model, start, play.batches(server_round, client), 0.1, loss))
            assert_close(play.uploaded(client), trained[-1])
            own[client] = {key: slope[key] - alpha * (trained[-1][key] - start[key]) for key in slope}
            assert_close(play.kept(client)["slope"], own[client])
        moved = {key: sum(each[key] - start[key] for each in trained) for key in start}
        server = {key: server[key] - alpha / 3 * moved[key] for key in server}
        mean = mean_of(trained, [1] * len(there))
        model = {key: mean[key] - server[key] / alpha for key in mean}
        assert_close(play.strategy.global_model, model)


def test_where_all_take_part_the_servers_state_is_the_mean_of_the_clients() -> None:
    play = Play("feddyn", absent={})
    for _ in play.rounds():
        assert_close(play.strategy.memory, mean_of([play.kept(client)["slope"] for client in range(3)], [1, 1, 1]))
