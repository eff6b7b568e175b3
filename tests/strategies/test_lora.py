"""Factors of LoRA: which travel, which train, and what becomes of their products."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.config.choices import CATALOGUES
from fedsim.errors import ClientError, ConfigError
from fedsim.models.adapter import Adapter
from fedsim.models.adapters import adapt_, factors_of, hold_bases_, merge_
from fedsim.models.copies import loaded
from fedsim.models.params import Params, state_of
from fedsim.models.ranks import cut_to_rank, deal_ranks_
from fedsim.strategy import ClientUpdate, Received, messages
from strategies import STRATEGIES
from strategies.fedrot_lora import rotation_of
from strategies.flexlora import best_factors
from strategies.flora import FloraRule
from tests.strategies.harness import ADAPTED, Mlp, Play, assert_close, descend, lora_mlp, mean_of

A = ("fc1.lora_A.default.weight", "fc2.lora_A.default.weight")
B = ("fc1.lora_B.default.weight", "fc2.lora_B.default.weight")
HEAD = ("fc3.weight", "fc3.bias")


def play_of(name: str = "lora", absent: dict[int, Any] | None = None, **options: Any) -> Play:
    return Play(name, options, model=lora_mlp, absent=absent or {}, rounds=3, sizes=(5, 8, 4))


def products(params: Params) -> list[Tensor]:
    return [params[second] @ params[first] for first, second in zip(A, B, strict=True)]


def mean_products(play: Play) -> list[Tensor]:
    members = [{str(i): value for i, value in enumerate(products(play.initial | play.uploaded(k)))} for k in range(3)]
    return list(mean_of(members, play.sizes).values())


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({}, (*A, *B, *HEAD), (*A, *B, *HEAD)),
        ({"share": "A", "head": "personal"}, A, A),
        ({"share": "A"}, (*A, *HEAD), (*A, *HEAD)),
        ({"share": "B"}, (*B, *HEAD), (*B, *HEAD)),
        ({"share": "alternate"}, (*B, *HEAD), (*A, *HEAD)),
    ],
)
def test_only_the_factors_that_are_shared_travel(
    options: dict[str, Any], first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    play = play_of(**options)
    for server_round, expected in ((1, first), (2, second)):
        play.round(server_round)
        assert set(play.uploaded(1)) == set(expected)
    frozen = {key for key in A if options.get("share") == "B"}
    moved = {key for key, value in play.personalised(1).items() if not torch.equal(value, play.initial[key])}
    assert moved == {*A, *B, *HEAD} - frozen


@pytest.mark.parametrize("name", ["fedex_lora", "flexlora", "flora", "fedrot_lora"])
def test_methods_that_need_both_factors_offer_nothing_else(name: str) -> None:
    (option,) = [each for each in CATALOGUES["strategies"].described_options(name) if each.name == "share"]
    assert option.range == '"both"'


@pytest.mark.parametrize("share", ["B", "alternate"])
def test_a_factor_that_rests_stays_where_plain_descent_of_the_other_leaves_it(share: str) -> None:
    play = play_of(share=share)
    for server_round in (1, 2):
        before = play.strategy.global_model
        play.round(server_round)
        moving = A if share == "alternate" and server_round == 2 else B
        layers = {key.rpartition(".")[0] for key in moving} | {"fc3"}
        ends = [
            descend(play.model, before, play.batches(server_round, client), 0.1, trained=sorted(layers))
            for client in range(3)
        ]
        expected = mean_of([{key: end[key] for key in (*moving, *HEAD)} for end in ends], play.sizes)
        assert_close({key: play.strategy.global_model[key] for key in expected}, expected)


def test_products_of_averages_are_the_averages_of_products_if_one_factor_is_common() -> None:
    for share, exact in (("B", True), ("both", False)):
        play = play_of(share=share)
        play.round(1)
        play.round(2)
        apart = [
            float((found - mean).norm() / mean.norm())
            for found, mean in zip(products(play.strategy.global_model), mean_products(play), strict=True)
        ]
        assert all(error < 1e-12 if exact else error > 1e-4 for error in apart)


def test_flexlora_is_exact_if_the_rank_is_that_of_all_clients_together() -> None:
    second, first = torch.randn(7, 6, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    found, other = best_factors(second, first, 5)
    torch.testing.assert_close(found @ other, second @ first, rtol=1e-12, atol=1e-12)
    u, s, v = torch.linalg.svd(second @ first)
    found, other = best_factors(second, first, 2)
    torch.testing.assert_close(found @ other, (u[:, :2] * s[:2]) @ v[:2], rtol=1e-12, atol=1e-12)
    play = play_of("flexlora")
    play.round(1)
    for product, mean in zip(products(play.strategy.global_model), mean_products(play), strict=True):
        u, s, v = torch.linalg.svd(mean)
        torch.testing.assert_close(product, (u[:, :2] * s[:2]) @ v[:2], rtol=1e-9, atol=1e-12)


BASE = ("fc1.base_layer.weight", "fc2.base_layer.weight")


def merged(params: Params) -> list[Tensor]:
    """Return the weights of the layers with their products, which count one and a half times."""
    return [params[base] + 1.5 * product for base, product in zip(BASE, products(params), strict=True)]


def test_fedex_makes_the_mean_of_the_clients_whole_weights_and_sends_the_weight_down_only() -> None:
    play = play_of("fedex_lora")
    for server_round in (1, 2):
        before = play.strategy.global_model
        play.round(server_round)
        members = [dict(enumerate(merged(before | play.uploaded(client)))) for client in range(3)]
        for number, mean in mean_of(members, play.sizes).items():
            torch.testing.assert_close(merged(play.strategy.global_model)[number], mean, rtol=1e-10, atol=1e-12)
            assert (play.strategy.global_model[BASE[number]] - before[BASE[number]]).abs().max() > 1e-6
        assert not set(BASE) & set(play.uploaded(1))
        assert (set(BASE) <= set(play.downloaded(1))) == (server_round == 2)
        assert not set(BASE) & set(play.kept(1).get("model", {}))
        assert_close(play.personalised(1), play.strategy.global_model, tolerance=0.0)


def test_fedex_of_one_client_is_fedit_and_one_that_was_absent_takes_the_weight_of_now() -> None:
    alone, plain = play_of("fedex_lora", absent={1: (0, 2), 2: (0, 2)}), play_of(absent={1: (0, 2), 2: (0, 2)})
    for server_round in (1, 2):
        alone.round(server_round)
        plain.round(server_round)
    assert_close({key: alone.strategy.global_model[key] for key in plain.initial}, plain.strategy.global_model, 0.0)
    assert all(torch.equal(alone.strategy.global_model[key], alone.initial[key]) for key in BASE)
    play = play_of("fedex_lora", absent={2: 1})
    for server_round in (1, 2):
        play.round(server_round)
    before = play.strategy.global_model
    play.train(3)
    assert_close({key: play.downloaded(1)[key] for key in BASE}, {key: before[key] for key in BASE}, 0.0)


def test_flora_merges_stacks_that_clients_merge_too_and_starts_again() -> None:
    play = play_of("flora", absent={2: 1})
    for server_round in (1, 2, 3):
        before = play.strategy.global_model
        play.round(server_round)
        after, there = play.strategy.global_model, sorted(play.present(server_round))
        starts = {client: play.initial | play.kept(client)["model"] for client in there}
        members = [dict(enumerate(merged(starts[client] | play.uploaded(client)))) for client in there]
        for number, mean in mean_of(members, [play.sizes[client] for client in there]).items():
            torch.testing.assert_close(after[BASE[number]], mean, rtol=1e-10, atol=1e-12)
        for client in there:  # each began with the server's weights, however they came
            assert_close({key: starts[client][key] for key in BASE}, {key: before[key] for key in BASE}, 0.0)
            assert_close(play.personalised(client), after, tolerance=0.0)
        assert all(not after[key].any() for key in B)
        assert all((after[key] - play.initial[key]).abs().max() > 0 for key in A)
        assert all(after[key].abs().max() <= after[key].shape[1] ** -0.5 for key in A)
    sizes = {client: play.sent[client].content for client in there}
    # Stacks of two clients of rank 2 for those of the last round, the weights for the one that missed it.
    stack = messages.arrays_of(sizes[0], "stack")
    assert {key: stack[key].shape for key in (A[0], B[0])} == {A[0]: (4, 4), B[0]: (6, 4)}
    assert set(play.downloaded(0)) == set(play.downloaded(2)) == set(HEAD)
    assert set(play.downloaded(1)) == {*BASE, *HEAD}
    assert "stack" not in sizes[1]


def test_a_stack_of_flora_that_comes_again_is_merged_once() -> None:
    play = play_of("flora", absent={})
    play.round(1)
    play.train(2)  # nothing of it is averaged
    play.train(3)
    for client in range(len(play.sizes)):
        assert_close(
            {key: play.kept(client)["model"][key] for key in BASE},
            {key: play.strategy.global_model[key] for key in BASE},
            tolerance=0.0,
        )


def test_a_client_that_has_missed_a_stack_of_flora_fails_and_takes_the_weights_next() -> None:
    sets = {"stack": {A[0]: torch.ones(1)}, "made_in": {"round": torch.tensor(2)}}
    for trained in ({}, {"trained_in": {"round": torch.tensor(1)}}):
        local: Any = SimpleNamespace(params={}, sets=sets | trained, server_round=3)
        with pytest.raises(ClientError, match="missed a stack: it last trained before round 2"):
            FloraRule().start(local)


def library_net() -> nn.Module:
    """Linear layers as GPT-2 stores them and as torch does, of which some are square, with adapters of peft."""
    conv = pytest.importorskip("transformers").pytorch_utils.Conv1D
    torch.manual_seed(0)
    parts = conv(6, 5), nn.Tanh(), conv(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)
    model = nn.Sequential(*parts).double()
    adapt_(model, Adapter(rank=2, alpha=3.0), torch.ones(2, 5, dtype=torch.float64))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedex_lora", "flora"])
def test_the_aggregate_computes_what_the_mean_of_the_clients_merged_weights_does(name: str) -> None:
    model, stream = library_net(), torch.manual_seed(1)
    hold_bases_(model)
    strategy, start = STRATEGIES[name](model), state_of(model)
    strategy.set_global_model({key: value.clone() for key, value in start.items()})
    assert [each.transposed for each in strategy.factors] == [True, True, False]
    keys, weights = strategy.keys(strategy.shared(1)), (2, 5, 1)
    sent = [
        {key: torch.randn(start[key].shape, generator=stream, dtype=torch.float64) for key in keys} for _ in range(3)
    ]
    averaged = strategy.aggregate(1, [ClientUpdate(k, sent[k], weights[k]) for k in range(3)])
    oracle = []
    for part in sent:
        own = loaded(model, start | part)
        merge_(own)
        oracle.append(own.state_dict())
    mean = library_net()
    merge_(mean)
    mean.load_state_dict(mean_of(oracle, weights))
    inputs = torch.linspace(-1, 1, 40, dtype=torch.float64).view(8, 5)
    found = loaded(model, start | averaged)(inputs)
    torch.testing.assert_close(found, mean(inputs), rtol=1e-10, atol=1e-10)


def merged_weights(model: nn.Module, params: Params) -> Params:
    """Return the weights of a model with the products that peft adds."""
    net = loaded(model, params)
    merge_(net)
    return net.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flexlora", "flora"])
def test_products_of_clients_with_different_ranks_count_with_their_own_scale(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    adapt_(model, Adapter(rank=5, ranks=(5, 1, 2), alpha=3.0), torch.ones(2, 5, dtype=torch.float64))
    deal_ranks_(model, (5, 1, 2))
    hold_bases_(model)
    strategy, start, stream = STRATEGIES[name](model), state_of(model), torch.manual_seed(1)
    strategy.set_global_model({key: value.clone() for key, value in start.items()})
    keys, weights = strategy.keys(strategy.shared(1)), (2, 5, 1)
    drawn = [
        {key: torch.randn(start[key].shape, generator=stream, dtype=torch.float64) for key in keys} for _ in weights
    ]
    own = [cut_to_rank(strategy.factors, start | part, client) for client, part in enumerate(drawn)]
    sent = [ClientUpdate(k, {key: each[key] for key in keys}, weights[k]) for k, each in enumerate(own)]
    mean = mean_of([merged_weights(model, each) for each in own], weights)
    strategy.step(1, Received(sent))
    found = merged_weights(model, strategy.global_model)
    assert_close(found, mean)
    for client, rank in enumerate((5, 1, 2)):
        if name == "flora":
            assert {key: len(value) for key, value in strategy.sets_for(2, client)["stack"].items()} == {
                strategy.factors[0].second: 6,
                strategy.factors[0].first: 5 + 1 + 2,
            }
            continue
        params = cut_to_rank(strategy.factors, start, client) | strategy.for_client(2, client)
        u, s, v = torch.linalg.svd(mean["0.weight"] - start["0.base_layer.weight"])
        closest = start["0.base_layer.weight"] + (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(merged_weights(model, params)["0.weight"], closest, rtol=1e-9, atol=1e-9)


def test_a_rotation_takes_factors_of_the_same_update_in_random_frames_back() -> None:
    stream = torch.manual_seed(0)
    first = torch.randn(3, 5, generator=stream, dtype=torch.float64)
    for _ in range(5):
        frame = rotation_of(torch.randn(3, 3, generator=stream, dtype=torch.float64), 1.0)
        assert torch.linalg.det(frame) == pytest.approx(1)
        turned = frame.T @ first
        back = rotation_of(turned @ first.T, 1.0)
        torch.testing.assert_close(back.T @ turned, first)
        half = rotation_of(turned @ first.T, 0.5)
        assert (half.T @ turned - first).norm() < (turned - first).norm()


def test_fedrot_without_strength_is_fedit_and_with_it_keeps_each_client_s_product() -> None:
    plain, none, whole = play_of(), play_of("fedrot_lora", strength=0.0), play_of("fedrot_lora", strength=1.0)
    for server_round in (1, 2):
        for play in (plain, none, whole):
            play.round(server_round)
    assert_close(none.strategy.global_model, plain.strategy.global_model, tolerance=0.0)
    for client in range(3):
        turned, straight = whole.uploaded(client), plain.uploaded(client)
        assert (turned[A[0]] - straight[A[0]]).abs().max() > 1e-6
        for one, other in zip(products(turned), products(straight), strict=True):
            torch.testing.assert_close(one, other)


def test_an_average_of_b_alone_over_own_a_is_refused_with_the_reason() -> None:
    line = "averages fc1.lora_B.default without fc1.lora_A.default, which trains and stays with each client"
    with pytest.raises(ConfigError, match=line):
        Play("layer_set", {"shared": "*lora_B*"}, model=lora_mlp)
    Play("layer_cycle", {"order": "deep-first"}, model=lora_mlp)  # in which A has its turn too
    assert [each.scaling for each in factors_of(lora_mlp())] == [1.5, 1.5]


@pytest.mark.parametrize("name", ADAPTED)
def test_a_model_without_factors_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no factors of LoRA.*; add \[model.adapter\] kind = 'lora'"):
        Play(name, {}, model=Mlp)
