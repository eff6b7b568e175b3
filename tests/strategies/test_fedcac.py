"""FedCAC against the paper's equations, written down plainly."""

import pytest
import torch

from fedsim.models.params import Params
from fedsim.strategy.messages import sets_of
from strategies import FedCac
from tests.strategies.harness import Mlp, Play, assert_close, descend, mean_of, norm_mlp

LR, BETA = 0.1, 4


def critical(before: Params, after: Params, share: float) -> Params:
    mask = {}
    for key, value in after.items():
        sensitivity = ((value - before[key]) * value).abs()
        count = int(share * value.numel())
        ranked = sensitivity.flatten().sort(descending=True).values
        mask[key] = sensitivity >= (ranked[count - 1] if count else torch.inf)
    return mask


def overlap(mine: Params, other: Params) -> float:
    a, b = (torch.cat([value.flatten() for value in mask.values()]).double() for mask in (mine, other))
    return float(1 - (a - b).abs().sum() / (2 * a.sum()))


def customised(models: dict[int, Params], masks: dict[int, Params], server_round: int) -> dict[int, Params]:
    pairs = {(i, j): overlap(masks[i], masks[j]) for i in models for j in models if i != j}
    mean, largest = sum(pairs.values()) / len(pairs), max(pairs.values())
    threshold = mean + server_round / BETA * (largest - mean)
    return {
        i: mean_of([models[j] for j in models if j == i or pairs[i, j] >= threshold], [1.0] * n)
        for i, n in ((i, 1 + sum(pairs[i, j] >= threshold for j in models if j != i)) for i in models)
    }


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_four_rounds_are_those_of_the_paper(share: float) -> None:
    play = Play("fedcac", {"beta": BETA, "critical": share}, rounds=4, absent={3: 1})
    model, models, masks, mixed = play.initial, {}, {}, {}
    for server_round in play.rounds():
        uploads = {}
        for client in sorted(play.present(server_round)):
            start = model
            if client in mixed:
                mask = masks[client]
                start = {key: torch.where(mask[key], mixed[client][key], model[key]) for key in model}
            uploads[client] = descend(play.model, start, play.batches(server_round, client), LR)
            masks[client] = critical(start, uploads[client], share)
            assert_close(play.uploaded(client), uploads[client])
            kept = play.kept(client)["critical"]
            assert all(torch.equal(kept[key], masks[client][key]) for key in model)
        models |= uploads
        model = mean_of(list(uploads.values()), [play.sizes[client] for client in uploads])
        mixed = customised(models, masks, server_round)
        assert_close(play.strategy.global_model, model)
        for client in range(3):
            expected = {key: torch.where(masks[client][key], mixed[client][key], model[key]) for key in model}
            assert_close(play.personalised(client), expected)


def test_nobody_is_similar_any_more_after_beta_rounds() -> None:
    play = Play("fedcac", {"beta": 2}, rounds=3, absent={})
    for server_round in play.rounds():
        others = [len(similar) - 1 for similar in play.strategy.similar().values()]
        assert any(others) == (server_round < 3)
    for client in range(3):  # critical entries start from the client's own model, all others from the average
        mask, personalised = play.kept(client)["critical"], play.personalised(client)
        for key, value in play.uploaded(client).items():
            expected = torch.where(mask[key], value, play.strategy.global_model[key])
            assert torch.equal(personalised[key], expected)


def test_if_all_is_critical_all_are_alike_and_begin_with_the_plain_mean() -> None:
    play = Play("fedcac", {"critical": 1.0, "beta": 1}, absent={})
    for _ in play.rounds():
        mean = mean_of([play.uploaded(client) for client in range(3)], [1.0] * 3)
        assert_close(play.personalised(1), mean)


def test_without_critical_parameters_it_is_fedavg() -> None:
    cac, full = Play("fedcac", {"critical": 0.0}, model=norm_mlp), Play("full", model=norm_mlp)
    for server_round in full.rounds():
        assert_close(cac.round(server_round), full.strategy.global_model, 0)
        assert_close(cac.personalised(0), full.personalised(0), 0)


def test_what_did_not_change_is_not_critical() -> None:
    def zero(client: int, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([inputs[:, :1] * 0, inputs[:, 1:]], 1), targets

    play = Play("fedcac", {"critical": 1.0}, change=zero)
    play.round(1)
    mask = play.kept(0)["critical"]["fc1.weight"]
    assert not mask[:, 0].any()
    assert mask[:, 1:].all()


def test_a_client_gets_two_models_once_it_has_taken_part() -> None:
    play = Play("fedcac", absent={1: 2})
    for server_round in play.rounds():
        for client, message in play.sent.items():
            sets = sets_of(message.content)
            known = server_round > 2 or (server_round == 2 and client != 2)
            assert set(sets) == ({"customised"} if known else set())
            assert set(sets_of(play.replied[client].content)) == {"critical"}
            if known:
                assert set(sets["customised"]) == set(play.downloaded(client)) == set(play.initial)


def test_running_statistics_are_the_averages() -> None:
    play = Play("fedcac", model=norm_mlp)
    for _ in play.rounds():
        assert torch.equal(play.personalised(0)["bn.running_mean"], play.strategy.global_model["bn.running_mean"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"critical": 1.5}, "critical = 1.5 must be at least 0"), ({"beta": 0}, "beta = 0 must be at least 1")],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedCac(Mlp(), **options)
