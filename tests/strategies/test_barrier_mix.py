"""barrier_mix against its definition, with every mix built and evaluated on its own."""

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsim.models.params import Params
from fedsim.seeds import rng
from fedsim.strategy.messages import decode, sets_of
from fedsim.training import Local, Network
from strategies.barrier_mix import BarrierMixRule
from tests.strategies.harness import FEATURES, Mlp, Play, assert_close, descend, mean_of, network_of, norm_mlp

BODY, HEAD = ("fc1", "bn", "fc2"), ("fc3",)


def mixes(own: Params, average: Params, personal: Params) -> list[Params]:
    """Return all mixes: body and head at 0, 1/2 and 1, the personal model, and half-way from it to the average."""

    def between(start: Params, end: Params, ts: dict[str, float]) -> Params:
        t_of = {key: ts["head" if key.startswith(HEAD) else "body"] for key in start}
        return {key: (1 - t_of[key]) * value + t_of[key] * end[key] for key, value in start.items()}

    grid = [dict(zip(("body", "head"), ts, strict=True)) for ts in itertools.product((0.0, 0.5, 1.0), repeat=2)]
    found = [between(own, average, ts) for ts in grid]
    return [*found, personal, between(personal, average, {"body": 0.5, "head": 0.5})]


def sums(play: Play, client: int, models: list[Params]) -> torch.Tensor:
    inputs, targets = play.federation.data.client(client).validation
    networks = [network_of(play.model, each).eval() for each in models]
    return torch.stack([cross_entropy(each(inputs), targets, reduction="sum").detach() for each in networks])


@pytest.mark.parametrize("prior", [0.0, 2.0])
def test_rounds_are_those_of_the_definition(prior: float) -> None:
    play = Play("barrier_mix", {"prior": prior, "server_momentum": 0.4, "personal_epochs": 1}, rounds=4)
    average = play.initial
    step = {key: torch.zeros_like(value) for key, value in average.items()}
    own, personal, population, chosen = dict[int, Params](), dict[int, Params](), torch.zeros(11).double(), set()
    for server_round in range(1, 5):
        curves, trained = {}, {}
        for client in sorted(play.present(server_round)):
            start = average
            if client in own:
                found = mixes(own[client], average, personal[client])
                curves[client] = sums(play, client, found)
                best = int((curves[client] + prior * population).argmin())
                chosen.add(best)
                start = found[best]
            stream = play.training_stream(server_round, client)
            batches = play.batches(server_round, client, 1, stream=stream)
            personal[client] = descend(play.model, start, batches, 0.1)
            trained[client] = descend(play.model, average, play.batches(server_round, client, stream=stream), 0.1)
        own |= trained
        mean = mean_of(list(trained.values()), [play.sizes[client] for client in trained])
        step = {key: 0.4 * step[key] + mean[key] - average[key] for key in mean}
        average = {key: average[key] + step[key] for key in mean}
        if curves:
            population = torch.stack(list(curves.values())).sum(0) / (2 * len(curves))
        assert_close(play.round(server_round), average)
        for client in trained:
            assert_close(play.kept(client)["personal"], personal[client])
    assert len(chosen) > 1
    for client in range(3):
        found = mixes(own[client], average, personal[client])
        best = int((sums(play, client, found) + prior * population).argmin())
        assert_close(play.personalised(client), found[best])


def test_a_number_for_each_mix_travels_besides_the_model() -> None:
    play = Play("barrier_mix")
    for _ in play.rounds():
        pass
    for messages, name, numbers in ((play.replied, "curve", 11 + 1), (play.sent, "population", 11)):
        for message in messages.values():
            [(found, record)] = sets_of(message.content).items()
            assert found == name
            assert sum(value.numel() for value in decode(record).values()) == numbers


@pytest.mark.parametrize("model", [Mlp, norm_mlp])
def test_sharing_the_body_of_mixes_changes_no_loss(model: Any) -> None:
    curves = []
    for groups in (["body", "head"], ["fc1 | fc2 | norm", "all - fc1 - fc2 - norm"]):
        play = Play("barrier_mix", {"groups": groups} if model is norm_mlp else {}, model=model, sizes=(5, 8, 4))
        for _ in play.rounds():
            pass
        curves.append(play.strategy.memory["curve"])
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-12, atol=0.0)


def test_it_passes_few_examples_more_than_two_trainings() -> None:
    """With a head of its own at the end, body mixes are computed once: 5 forward passes for 11 mixes."""
    counts = {}
    for name in ("barrier_mix", "ditto"):
        play = Play(name, absent={})
        for _ in play.rounds():
            counts[name] = {client: dict(reply.content["metrics"]) for client, reply in play.replied.items()}
    for client in range(3):
        forward = [counts[name][client]["uploaded/train/forward_examples"] for name in ("barrier_mix", "ditto")]
        assert forward[0] - forward[1] == 5 * 2  # two validation examples


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["body", "all"], "'body' and 'all' both hold fc1; each layer may be in one only"),
        ([], "must name at least one layer group"),
        (["nothing"], "nothing"),
    ],
)
def test_groups_that_overlap_or_are_none_are_refused(groups: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Play("barrier_mix", {"groups": groups})


def test_only_rules_that_want_validation_data_read_them() -> None:
    for name, fails in (("ditto", False), ("barrier_mix", True)):
        play = Play(name, absent={})
        play.round(1)
        for client in play.federation.data.clients:  # type: ignore[attr-defined]
            del client.validation
        with pytest.raises(AssertionError) if fails else nullcontext():
            play.train(2)


def test_without_validation_data_a_client_takes_the_average() -> None:
    rule, nothing = BarrierMixRule(Mlp(), groups=("body", "head"), prior=60.0), torch.empty(0, dtype=torch.int64)
    zeros = {key: torch.zeros_like(value) for key, value in Mlp().state_dict().items()}
    ones = {key: torch.ones_like(value) for key, value in zeros.items()}
    settings = Play("full").config.local.settings
    empty = (torch.empty(0, FEATURES), nothing)
    local = Local(
        2, 0, ones, {"personal": zeros}, zeros, *empty, settings, rng(0), Network(Mlp()), read_validation=lambda: empty
    )
    assert_close(rule.personalised(rule.start(local)), ones)


def test_without_a_model_of_its_own_a_client_takes_the_average() -> None:
    play = Play("barrier_mix", {"server_momentum": 0.0}, rounds=1, absent={1: 2})
    assert_close(play.round(1), {key: play.strategy.global_model[key] for key in play.initial})
    assert_close(play.personalised(2), play.strategy.global_model)
    assert isinstance(play.model, nn.Module)
