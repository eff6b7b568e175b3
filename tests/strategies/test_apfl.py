"""APFL against its algorithm 1, written down plainly."""

import pytest

from fedsim.models.params import Params
from strategies import Apfl
from tests.strategies.harness import Mlp, Play, assert_close, gradient, mean_of, norm_mlp

LR = 0.1


def mixed(v: Params, w: Params, alpha: float) -> Params:
    return {key: alpha * v[key] + (1 - alpha) * w[key] for key in v}


def play_by_hand(play: Play, alpha: float, adaptive: bool, lr: float) -> list[list[float]]:
    """Play all rounds next to the paper's equations; return the weights of each client after each round."""
    w, personal, weights = play.initial, [play.initial] * 3, [alpha] * 3
    history = []
    for server_round in play.rounds():
        trained, present = [], sorted(play.present(server_round))
        for client in present:
            own, v, alpha = w, personal[client], weights[client]
            for number, batch in enumerate(play.batches(server_round, client)):
                slopes, at_mixture = gradient(play.model, own, batch), gradient(play.model, mixed(v, own, alpha), batch)
                slope = sum(float(((v[key] - own[key]) * at_mixture[key]).sum()) for key in own) + 0.02 * alpha
                own, v = (
                    {key: own[key] - lr * slopes[key] for key in own},
                    {key: v[key] - lr * alpha * at_mixture[key] for key in v},
                )
                if adaptive and number == 0:
                    alpha = min(1.0, max(0.0, alpha - lr * slope))
            personal[client], weights[client] = v, alpha
            trained.append(own)
            assert_close(play.kept(client)["personal"], v)
            assert float(play.kept(client)["mix"]["weight"]) == pytest.approx(alpha, abs=1e-10)
        w = mean_of(trained, [play.sizes[client] for client in present])
        assert_close(play.strategy.global_model, w)
        for client in present:
            assert_close(play.personalised(client), mixed(personal[client], w, weights[client]))
        history.append(list(weights))
    return history


@pytest.mark.parametrize(("mix", "adaptive"), [(0.3, False), (0.3, True), (0.9, True)])
def test_three_rounds_are_those_of_the_algorithm(mix: float, adaptive: bool) -> None:
    history = play_by_hand(Play("apfl", {"mix": mix, "adaptive": adaptive}), mix, adaptive, LR)
    assert (history[-1] != [mix] * 3) == adaptive


def test_the_weight_stays_between_0_and_1() -> None:
    play = Play("apfl", {"mix": 0.95}, local={"lr": 1.5})
    history = play_by_hand(play, 0.95, True, 1.5)
    assert any(weight in (0.0, 1.0) for weights in history for weight in weights)


def test_a_weight_of_0_is_fedavg_and_1_local_training_next_to_it() -> None:
    plays = [Play("apfl", {"mix": mix, "adaptive": False}) for mix in (0.0, 1.0)]
    full, local = Play("full"), Play("local")
    for server_round in full.rounds():
        local.round(server_round)
        for play in plays:
            assert_close(play.round(server_round), full.strategy.global_model, 0)
        for client in range(3):
            assert_close(plays[0].personalised(client), full.strategy.global_model, 0)
            assert_close(plays[1].personalised(client), local.personalised(client), 0)


def test_the_mixture_has_running_statistics_of_its_own() -> None:
    play = Play("apfl", {"mix": 0.5}, model=norm_mlp)
    full = Play("full", model=norm_mlp)
    for server_round in play.rounds():
        assert_close(full.round(server_round), play.strategy.global_model, 1e-12)
    key = "bn.running_mean"
    assert not play.personalised(0)[key].equal(play.strategy.global_model[key])
    assert_close({key: play.personalised(0)[key]}, {key: play.kept(0)["personal"][key]}, 0)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"mix = 1\.5 must be at least 0 and at most 1"):
        Apfl(Mlp(), mix=1.5)
