"""FedGuCci against the paper's loss, written down plainly."""

import pytest

from fedsim.models.params import Params
from fedsim.seeds import rng
from fedsim.strategy.messages import sets_of
from strategies import FedGucci
from tests.strategies.harness import Mlp, Play, assert_close, gradient, mean_of, norm_mlp

LR = 0.1


@pytest.mark.parametrize(("anchors", "points"), [(1, "middle"), (2, "middle"), (2, "random")])
def test_four_rounds_are_those_of_the_paper(anchors: int, points: str) -> None:
    beta = 0.5
    play = Play("fedgucci", {"anchors": anchors, "beta": beta, "points": points}, rounds=4)
    models: list[Params] = [play.initial]
    for server_round in play.rounds():
        trained, present = [], sorted(play.present(server_round))
        latest = models[::-1][:anchors]
        for client in present:
            own, stream = models[-1], rng(0, "rule", server_round, client)
            for batch in play.batches(server_round, client):
                drawn = stream.uniform(size=len(latest)) if points == "random" else [0.5] * len(latest)
                slopes = gradient(play.model, own, batch)
                for anchor, t in zip(latest, drawn, strict=True):
                    between = {key: t * own[key] + (1 - t) * anchor[key] for key in own}
                    more = gradient(play.model, between, batch)
                    slopes = {key: slopes[key] + beta / len(latest) * t * more[key] for key in own}
                own = {key: own[key] - LR * slopes[key] for key in own}
            trained.append(own)
        models.append(mean_of(trained, [play.sizes[client] for client in present]))
        assert_close(play.strategy.global_model, models[-1])


def test_beta_0_is_fedavg_with_its_running_statistics() -> None:
    gucci, full = Play("fedgucci", {"beta": 0.0, "anchors": 2}, model=norm_mlp), Play("full", model=norm_mlp)
    for server_round in gucci.rounds():
        assert_close(gucci.strategy.global_model, full.round(server_round), 0)


def test_only_past_global_models_travel_next_to_the_current_one() -> None:
    play = Play("fedgucci", {"anchors": 3}, rounds=4)
    names, models = [], [play.initial]
    for _ in play.rounds():
        names.append(sorted(sets_of(play.sent[0].content)))
        models.append(play.strategy.global_model)
        assert not any(sets_of(reply.content) for reply in play.replied.values())
    assert names == [[], ["anchor_1"], ["anchor_1", "anchor_2"], ["anchor_1", "anchor_2"]]
    assert_close(play.strategy.sets_for(5, 0)["anchor_2"], models[2], 0)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="anchors = 0 must be at least 1"):
        FedGucci(Mlp(), anchors=0)
    with pytest.raises(ValueError, match="beta = -1 must be at least 0"):
        FedGucci(Mlp(), beta=-1)
