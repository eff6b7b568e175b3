"""SCAFFOLD against its algorithm 1 with option II, written down plainly."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate
from fedsim.strategy.messages import sets_of
from strategies import Scaffold
from tests.strategies.harness import Mlp, Play, assert_close, descend, gradient, mean_of, norm_mlp

LR = 0.1


def zeros(like: Params) -> Params:
    return {key: torch.zeros_like(value) for key, value in like.items()}


@pytest.mark.parametrize("server_lr", [1.0, 0.7])
def test_three_rounds_are_those_of_the_algorithm(server_lr: float) -> None:
    play = Play("scaffold", {"server_lr": server_lr})
    x, c = play.initial, zeros(play.initial)
    controls = [c] * 3
    for server_round in play.rounds():
        moves, changes = [], []
        for client in sorted(play.present(server_round)):
            batches, y, own = play.batches(server_round, client), x, controls[client]
            for batch in batches:
                slopes = gradient(play.model, y, batch)
                y = {key: y[key] - LR * (slopes[key] + c[key] - own[key]) for key in y}
            controls[client] = {key: own[key] - c[key] + (x[key] - y[key]) / (len(batches) * LR) for key in y}
            moves.append({key: y[key] - x[key] for key in y})
            changes.append({key: controls[client][key] - own[key] for key in y})
            assert_close(play.uploaded(client), y)
            assert_close(play.kept(client)["control"], controls[client])
        x = {key: x[key] + server_lr * sum(move[key] for move in moves) / len(moves) for key in x}
        c = {key: c[key] + sum(change[key] for change in changes) / 3 for key in c}
        assert_close(play.strategy.global_model, x)
        assert_close(play.strategy.state(), c)


def test_the_first_round_is_fedavg_with_equal_weights() -> None:
    play = Play("scaffold")
    trained = [descend(play.model, play.initial, play.batches(1, client), LR) for client in range(3)]
    assert_close(play.round(1), mean_of(trained, [1, 1, 1]))
    same_sizes = [Play(name, sizes=(4, 4, 4)).round(1) for name in ("scaffold", "full")]
    assert_close(same_sizes[0], same_sizes[1], 1e-14)


def test_the_server_does_not_go_beyond_the_mean_of_running_statistics() -> None:
    play = Play("scaffold", {"server_lr": 3.0}, model=norm_mlp)
    after = play.round(1)
    mean = mean_of([play.uploaded(client) for client in range(3)], [1, 1, 1])
    for key in ("bn.running_mean", "bn.running_var"):
        torch.testing.assert_close(after[key], mean[key])
        assert key not in play.strategy.state()


def test_a_clients_control_variate_stays_with_it() -> None:
    play = Play("scaffold")
    for _ in play.rounds():
        assert {name for reply in play.replied.values() for name in sets_of(reply.content)} == {"control_change"}
        assert {name for sent in play.sent.values() for name in sets_of(sent.content)} == {"server_control"}


def test_clients_that_never_train_do_not_count() -> None:
    strategy = Scaffold(Mlp(), unseen=0.25)
    strategy.set_global_model(Mlp().state_dict())
    strategy.clients = 4
    ones = {key: torch.ones_like(value) for key, value in strategy.global_model.items()}
    strategy.aggregate(1, [ClientUpdate(0, strategy.global_model, 1.0, sets={"control_change": ones})])
    assert_close(strategy.state(), {key: value / 3 for key, value in ones.items()}, 1e-7)


@pytest.mark.parametrize("model", [Mlp, norm_mlp])
def test_a_cohort_trains_as_one_client_after_the_other(model: Callable[[], nn.Module]) -> None:
    local = {"schedule": "cosine", "warmup": 1}  # at which each member is at a point of its own
    alone, together = (
        Play("scaffold", cohort=cohort, model=model, absent={1: (1, 2)}, local=local) for cohort in (1, 3)
    )
    for server_round in alone.rounds():
        assert_close(together.round(server_round), alone.strategy.global_model)
        assert_close(together.strategy.state(), alone.strategy.state())


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"server_lr = 0\.0 must be greater than 0"):
        Scaffold(Mlp(), server_lr=0.0)
    with pytest.raises(ConfigError, match=r"local\.momentum"):
        Play("scaffold", local={"momentum": 0.9})
