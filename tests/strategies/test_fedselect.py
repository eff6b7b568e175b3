"""FedSelect against its algorithm, written down plainly, one parameter at a time where that is plainest."""

import pytest
import torch

from fedsim.errors import ConfigError
from fedsim.models.params import Params
from fedsim.strategy.messages import sets_of
from strategies import FedSelect
from tests.strategies.harness import Batch, Mlp, Play, assert_close, gradient, norm_mlp

LR, GROWTH, TARGET = 0.1, 0.3, 0.5
OPTIONS = {"every": 1, "growth": GROWTH, "target": TARGET}


def masked_descent(play: Play, params: Params, batches: list[Batch], mask: Params, personal: bool) -> Params:
    for batch in batches:
        slopes = gradient(play.model, params, batch)
        params = {key: value - LR * slopes[key] * (mask[key] == personal) for key, value in params.items()}
    return params


def grown(mask: Params, params: Params, reference: Params, growth: float, target: float) -> Params:
    new = {}
    for key, value in mask.items():
        flags = value.flatten().tolist()
        moved = (params[key] - reference[key]).abs().flatten().tolist()
        ascending = sorted((place for place, flag in enumerate(flags) if not flag), key=lambda p: moved[p])
        chosen = ascending[round((1 - growth) * len(ascending)) :]
        room = round(target * len(flags)) - sum(flags)
        for place in reversed(chosen):
            if room > 0:
                flags[place], room = True, room - 1
        new[key] = torch.tensor(flags).view(value.shape)
    return new


def test_four_rounds_are_those_of_the_algorithm() -> None:
    play = Play("fedselect", OPTIONS, rounds=4, absent={3: 1})
    model, own = play.initial, [play.initial] * 3
    nothing = {key: torch.zeros_like(value, dtype=torch.bool) for key, value in model.items()}
    masks, references = [nothing] * 3, [play.initial] * 3
    for server_round in play.rounds():
        total, weight = ({key: torch.zeros_like(value) for key, value in model.items()} for _ in range(2))
        for client in sorted(play.present(server_round)):
            mask, n = masks[client], play.sizes[client]
            stream = play.training_stream(server_round, client)
            params = {key: torch.where(mask[key], own[client][key], model[key]) for key in model}
            if server_round > 2:
                params = masked_descent(play, params, play.batches(server_round, client, 2, stream=stream), mask, True)
            params = masked_descent(play, params, play.batches(server_round, client, 1, stream=stream), mask, False)
            own[client] = params
            assert_close(play.uploaded(client), {key: params[key] * ~mask[key] for key in params})
            for key in model:
                total[key] += n * params[key] * ~mask[key]
                weight[key] += n * ~mask[key]
            if server_round > 1:
                masks[client] = grown(mask, params, references[client], GROWTH, TARGET)
                references[client] = params
            kept = play.kept(client)
            assert all(torch.equal(kept["personal_mask"][key], masks[client][key]) for key in model)
            assert_close(kept["reference"], references[client])
        model = {key: torch.where(weight[key] > 0, total[key] / weight[key], model[key]) for key in model}
        assert_close(play.strategy.global_model, model)
    # Half of each tensor's 24, 6, 30, 5, 15 and 3 parameters, halves rounded to even.
    assert [int(mask.sum()) for mask in masks[0].values()] == [12, 3, 15, 2, 8, 2]
    for client in range(3):
        expected = {key: torch.where(masks[client][key], own[client][key], model[key]) for key in model}
        assert_close(play.personalised(client), expected)


def test_masks_grow_after_so_many_rounds_and_not_in_the_first() -> None:
    play = Play("fedselect", {**OPTIONS, "every": 2}, rounds=4, absent={})
    personal = [sum(int(mask.sum()) for mask in play.kept(0)["personal_mask"].values()) for _ in play.rounds()]
    assert personal[:2] == [0, 0]
    assert personal[2] == personal[3] > 0


def test_without_a_target_it_is_fedavg() -> None:
    for option in ("target", "growth"):
        select = Play("fedselect", {**OPTIONS, option: 0.0, "shared_epochs": 2}, model=norm_mlp)
        full = Play("full", model=norm_mlp)
        for server_round in full.rounds():
            assert_close(select.round(server_round), full.strategy.global_model, 1e-14)
            assert not any(sets_of(reply.content) for reply in select.replied.values())


def test_once_all_is_personal_the_global_model_stays() -> None:
    play = Play("fedselect", {"every": 1, "growth": 1.0, "target": 1.0}, rounds=4, absent={}, model=norm_mlp)
    for server_round in (1, 2):
        before = play.round(server_round)
    after = play.round(3)
    for key, value in before.items():
        assert torch.equal(after[key], value) == ("running" not in key)
    personalised, own = play.personalised(0), play.kept(0)["model"]
    for key in ("fc1.weight", "bn.bias", "fc3.bias"):
        assert torch.equal(personalised[key], own[key])


def test_what_is_personal_never_leaves_and_the_mask_goes_with_the_rest() -> None:
    play = Play("fedselect", OPTIONS, rounds=4)
    for server_round in play.rounds():
        for client in play.present(server_round):
            sent = sets_of(play.replied[client].content)
            # Masks grow from round 2 on, in which client 1 is absent, and are used from the next round on.
            assert set(sent) == ({"personal_mask"} if server_round > (3 if client == 1 else 2) else set())
            for key, mask in sent.get("personal_mask", {}).items():
                assert mask.dtype == "bool"
                uploaded = play.uploaded(client)[key]
                assert not uploaded[torch.from_numpy(mask.numpy())].any()
                assert uploaded.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every = 0 must be at least 1"),
        ({"shared_epochs": 0}, "shared_epochs = 0 must be at least 1"),
        ({"growth": 1.1}, "growth = 1.1 must be at least 0 and at most 1"),
        ({"target": -0.1}, "target = -0.1 must be at least 0 and at most 1"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedSelect(Mlp(), **options)


def test_momentum_would_move_what_is_frozen() -> None:
    with pytest.raises(ConfigError, match=r"local\.momentum"):
        Play("fedselect", local={"momentum": 0.9})
