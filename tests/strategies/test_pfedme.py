"""pFedMe against its algorithm 1 and the authors' inner steps, written down plainly."""

from collections.abc import Callable

import pytest
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.params import Params
from strategies import PFedMe
from tests.strategies.agreement import assert_trains_alike
from tests.strategies.harness import Mlp, Play, assert_close, descend, gradient, mean_of, norm_mlp

LR, PERSONAL_LR, DECAY = 0.1, 0.05, 0.02


@pytest.mark.parametrize(("steps", "server_lr"), [(1, 1.0), (4, 0.6)])
def test_three_rounds_are_those_of_the_algorithm(steps: int, server_lr: float) -> None:
    proximal = 3.0
    options = {"proximal": proximal, "inner_steps": steps, "personal_lr": PERSONAL_LR, "decay": DECAY}
    play = Play("pfedme", {**options, "server_lr": server_lr})
    w = play.initial
    personal: dict[int, Params] = {}
    for server_round in play.rounds():
        trained = []
        for client in sorted(play.present(server_round)):
            own = theta = w
            for batch in play.batches(server_round, client):
                for _ in range(steps):
                    slopes = gradient(play.model, theta, batch)
                    theta = {
                        key: value - PERSONAL_LR * (slopes[key] + proximal * (value - own[key]) + DECAY * value)
                        for key, value in theta.items()
                    }
                own = {key: own[key] - LR * proximal * (own[key] - theta[key]) for key in own}
            personal[client] = theta
            trained.append(own)
            assert_close(play.uploaded(client), own)
        mean = mean_of(trained, [1] * len(trained))
        w = {key: (1 - server_lr) * w[key] + server_lr * mean[key] for key in w}
        assert_close(play.strategy.global_model, w)
        for client, theta in personal.items():
            assert_close(play.personalised(client), theta)


def test_a_step_all_the_way_to_the_personal_model_is_fedavg_with_equal_weights() -> None:
    play = Play("pfedme", {"proximal": 10.0, "inner_steps": 1, "personal_lr": 0.05, "decay": 0.0})
    w = play.initial
    for server_round in play.rounds():
        present = sorted(play.present(server_round))
        trained = [descend(play.model, w, play.batches(server_round, client), 0.05) for client in present]
        w = mean_of(trained, [1] * len(trained))
        assert_close(play.strategy.global_model, w)


def test_each_inner_step_counts_as_a_pass() -> None:
    play = Play("pfedme", {"inner_steps": 4})
    play.round(1)
    for update in play.received.updates:
        assert update.metrics["uploaded/train/forward_examples"] == 4 * 2 * play.sizes[update.client]


def test_a_client_that_never_trained_is_evaluated_with_the_global_model() -> None:
    play = Play("pfedme", absent={1: 2})
    assert_close(play.round(1), play.personalised(2), 0)


def test_running_statistics_are_those_of_the_personal_model() -> None:
    play = Play("pfedme", model=norm_mlp)
    after = play.round(1)
    for key in ("bn.running_mean", "bn.running_var"):
        assert play.uploaded(0)[key].equal(play.kept(0)["personal"][key])
        assert not after[key].equal(play.initial[key])


@pytest.mark.slow
@pytest.mark.parametrize("model", [Mlp, norm_mlp])
def test_a_cohort_trains_as_one_client_after_the_other(model: Callable[[], nn.Module]) -> None:
    local = {"schedule": "cosine", "warmup": 1}  # at which each member is at a point of its own
    alone, together = (Play("pfedme", cohort=cohort, model=model, absent={1: (1, 2)}, local=local) for cohort in (1, 3))
    assert_trains_alike(alone, together, range(3))


@pytest.mark.parametrize(("option", "value"), [("proximal", 0.0), ("personal_lr", 0.0), ("server_lr", -1.0)])
def test_bad_options_are_named(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{option} = {value} must be greater than 0"):
        PFedMe(Mlp(), **{option: value})


def test_bad_counts_and_settings_are_named() -> None:
    with pytest.raises(ValueError, match="inner_steps = 0 must be at least 1"):
        PFedMe(Mlp(), inner_steps=0)
    with pytest.raises(ValueError, match="decay = -1 must be at least 0"):
        PFedMe(Mlp(), decay=-1)
    with pytest.raises(ConfigError, match=r"local\.momentum"):
        Play("pfedme", local={"momentum": 0.9})
