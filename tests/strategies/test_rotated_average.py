"""Matched averages of small transformers whose heads and residual stream are rotated."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.alignment.matched import Symmetries, spec_of
from fedsim.alignment.merging.arrived import matched_parts
from fedsim.alignment.merging.merging import merge_many
from fedsim.alignment.symmetries.norms import absorb_norms
from fedsim.alignment.symmetries.permutations import permute, random_permutation
from fedsim.models.architectures.gpt import Block
from fedsim.models.params import Params
from strategies import HierarchicalAverage, MatchedAverage, rebasin
from tests.alignment.test_factors import invertible, multiplied
from tests.strategies.harness import CLASSES, FEATURES, Play, assert_close
from tests.strategies.test_rebasin import PROBES, Mlp, outputs


class Former(nn.Module):
    """A pre-norm transformer that takes each feature as a token, and whose head is no embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.positions = nn.Parameter(torch.randn(FEATURES, 8))
        self.block = Block(2, 8, 0.0)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)
        for norm in (self.block.ln_1, self.block.ln_2, self.norm):
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias, 0, 0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.block(self.embed(inputs.unsqueeze(2)) + self.positions)
        return self.head(self.norm(tokens).mean(1))


def rotated(symmetries: Symmetries, name: str = "matched_average", **options: Any) -> Play:
    """Return a play whose clients begin with rotated copies of the initial model and hardly train.

    For ``invertible``, any matrix has multiplied the factors of their heads, too.
    """
    return copied(Former, symmetries, name, **options)


def copied(
    model: Callable[[], nn.Module], symmetries: Symmetries, name: str = "matched_average", **options: Any
) -> Play:
    play = Play(name, {"symmetries": symmetries, **options}, model=model, rounds=3, absent={2: 2}, local={"lr": 1e-30})
    spec = spec_of(play.model, symmetries, PROBES)
    whole = absorb_norms(play.initial, spec.norms)
    copies = [permute(whole, spec, random_permutation(spec, np.random.default_rng(client))) for client in range(3)]
    if symmetries == "invertible":
        copies = [stretched(each, client) for client, each in enumerate(copies)]
    object.__setattr__(play.federation, "initial_of", lambda client: copies[client])
    return play


def stretched(params: Params, client: int) -> Params:
    """Return a copy whose two heads of 4 units have been multiplied by matrices that are no rotations."""
    g, h = (invertible(2, 4, 2 * client + i) for i in (0, 1))
    found = dict(params)
    for key in ("block.attn.c_attn.weight", "block.attn.c_attn.bias"):
        q, k, v = params[key].chunk(3)
        found[key] = torch.cat([multiplied(q, g), multiplied(k, g.inverse().mT), multiplied(v, h)])
    out = "block.attn.c_proj.weight"
    found[out] = multiplied(params[out].T, h.inverse().mT).T.contiguous()
    return found


@pytest.mark.parametrize(
    ("symmetries", "options"),
    [
        ("head-rotations", {}),
        ("rotations", {}),
        ("rotations", {"name": "hierarchical_average"}),
        ("head-rotations", {"shared": "block.attn.c_attn"}),
        ("rotations", {"shared": "body"}),
        ("rotations", {"shared": "block.* | embed"}),
        ("rotations", {"shared": "norm | head"}),
        ("invertible", {}),
        ("invertible", {"shared": "block.* | embed"}),
    ],
)
def test_rotated_copies_average_to_the_model_and_what_clients_keep_follows(
    symmetries: Symmetries, options: Mapping[str, Any]
) -> None:
    play = rotated(symmetries, **options)
    expected = outputs(play, play.initial)
    for server_round in play.rounds():
        for client in range(3):
            if server_round > 1 or client != 2:
                torch.testing.assert_close(outputs(play, play.personalised(client)), expected, rtol=1e-8, atol=1e-8)
        if "shared" not in options:
            torch.testing.assert_close(outputs(play, play.strategy.global_model), expected, rtol=1e-8, atol=1e-8)
        followed = {client for client in range(3) if play.strategy.sets_for(server_round + 1, client)}
        # Client 1, which has the most examples, keeps its frame, and the others follow it once.
        assert followed == ({1: {0, 2}, 2: {2}}.get(server_round, set()) if "shared" in options else set())


def test_rotations_alone_do_not_bring_stretched_copies_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebasin, "normal_form", lambda params, spec: absorb_norms(params, spec.norms))
    play = rotated("invertible")
    play.round(1)
    assert not torch.allclose(outputs(play, play.strategy.global_model), outputs(play, play.initial), atol=0.01)


def pruned() -> nn.Module:
    """Return a model whose first head reads and adds nothing, so that no matrix balances its factors."""
    model = Former()
    with torch.no_grad():
        for value in (model.block.attn.c_attn.weight, model.block.attn.c_attn.bias):
            value.view(3, 2, 4, -1)[:2, 0] = 0
        model.block.attn.c_proj.weight[:, :4] = 0
    return model


def test_a_head_that_was_pruned_stops_no_client() -> None:
    play = copied(pruned, "invertible")
    expected = outputs(play, play.initial)
    for _ in play.rounds():
        torch.testing.assert_close(outputs(play, play.strategy.global_model), expected, rtol=1e-8, atol=1e-8)


def test_permutations_alone_do_not_bring_rotated_copies_together() -> None:
    play = rotated("head-rotations")
    object.__setattr__(play.strategy, "spec", spec_of(play.model, "permutations", PROBES))
    play.round(1)
    assert not torch.allclose(outputs(play, play.strategy.global_model), outputs(play, play.initial), atol=0.01)


def test_clients_send_models_whose_norms_have_no_scale_only_if_the_stream_is_rotated() -> None:
    for symmetries in ("head-rotations", "rotations"):
        play = Play("matched_average", {"symmetries": symmetries}, model=Former, absent={})
        play.round(1)
        scales = [play.uploaded(client)["norm.weight"] for client in range(3)]
        assert all(bool((scale == 1).all()) == (symmetries == "rotations") for scale in scales)


def test_the_default_is_permutations() -> None:
    plays = [Play("matched_average", options, model=Former) for options in ({}, {"symmetries": "permutations"})]
    assert_close(*(play.round(1) for play in plays), 0)


@pytest.mark.parametrize("strategy", [MatchedAverage, HierarchicalAverage])
def test_a_model_without_heads_is_refused(strategy: Any) -> None:
    with pytest.raises(ValueError, match="Mlp has no units that can be rotated") as error:
        strategy(Mlp().double(), inputs=PROBES, symmetries="rotations")
    assert "\n" not in str(error.value)


def test_c2m3_with_rotations_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^matching = 'c2m3' finds permutations alone[^\n]*$"):
        MatchedAverage(Former().double(), inputs=PROBES, matching="c2m3", symmetries="rotations")


def test_a_norm_that_switches_a_unit_off_is_named() -> None:
    def off() -> nn.Module:
        model = Former()
        nn.init.zeros_(model.norm.weight)
        return model

    play = Play("matched_average", {"symmetries": "rotations"}, model=off, local={"lr": 1e-30})
    with pytest.raises(Exception, match=r"norm\.weight has an entry that is 0"):
        play.round(1)


def scaled(params: Params, share: float) -> Params:
    """Return a model that computes the same with another scale of its last norm."""
    factors = {"norm.weight": share, "norm.bias": share, "head.weight": 1 / share}
    return {key: value * factors.get(key, 1) for key, value in params.items()}


@pytest.mark.parametrize("client", [0, 1])
@pytest.mark.parametrize("name", ["matched_average", "hierarchical_average"])
def test_scales_of_norms_that_arrive_are_absorbed(name: str, client: int) -> None:
    play = rotated("rotations", name)
    expected = outputs(play, play.initial)
    for server_round in (1, 2):
        received = play.train(server_round)
        received.updates = [
            replace(each, shared=scaled(each.shared, 0.94)) if each.client == client else each
            for each in received.updates
        ]
        play.strategy.step(server_round, received)
        torch.testing.assert_close(outputs(play, play.strategy.global_model), expected, rtol=1e-8, atol=1e-8)
        # The server may also change the average, as a server's optimiser does.
        play.strategy.set_global_model(scaled(play.strategy.global_model, 1.1))


def test_a_scale_that_nothing_can_take_leaves_a_model_as_it_is() -> None:
    play = rotated("rotations")
    spec = spec_of(play.model, "rotations", PROBES)
    params = absorb_norms(play.initial, spec.norms)
    turned = permute(params, spec, random_permutation(spec, np.random.default_rng(0)))
    off, zero = scaled(turned, 0.5), turned | {"norm.weight": torch.zeros(8, dtype=torch.float64)}
    head = ("head.weight", "head.bias")
    for damaged, left_out in ((off, head), (zero, ())):
        members = [{k: v for k, v in each.items() if k not in left_out} for each in (params, turned, damaged)]
        for start in (None, members[0], members[2]):
            args = (members, [3, 1, 1], start, merge_many, np.random.default_rng(0))
            taken, (first, second, third) = matched_parts(spec, *args)
            assert third == {}
            assert_close(taken[2], members[2], 0)
            assert_close(permute(members[0], spec, first), permute(members[1], spec, second), 1e-8)
            if start is members[0]:
                assert_close(permute(members[0], spec, first), members[0], 1e-8)
