"""The three paths between models with LoRA: what they share, what tells them apart, and peft's merge as an oracle."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.alignment.frames import closest_orthogonal, in_frame_of
from fedsim.analysis import Data, Models, barriers
from fedsim.analysis.mixing.groups import named_groups
from fedsim.models.adapter import Adapter
from fedsim.models.adapters import adapt_, factors_of, hold_bases_, merge_
from fedsim.models.copies import copy_of
from fedsim.models.layers import Layers, describe_
from fedsim.models.params import Params, load_state_, state_of

PATHS = ("factors", "product", "aligned")
RANK = 2
INPUTS = torch.linspace(-1, 1, 60, dtype=torch.float64).view(12, 5).sin()
DATA = Data(INPUTS, torch.arange(12) % 3)


class Untraceable(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if bool(x.sum() < 1e9) else x


@cache
def adapted(architecture: type[nn.Sequential] = nn.Sequential, freeze: str = "", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = architecture(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    adapt_(model, Adapter(**{"rank": RANK, "alpha": 3.0} | options), INPUTS)
    describe_(model, INPUTS, freeze=freeze)
    return model


def states_of(model: nn.Module, number: int) -> list[Params]:
    streams = [torch.Generator().manual_seed(k) for k in range(number)]
    return [
        {key: torch.randn(value.shape, generator=stream, dtype=torch.float64) for key, value in state_of(model).items()}
        for stream in streams
    ]


def test_the_weights_below_adapters_are_no_layers_to_measure() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    adapt_(model, Adapter(rank=RANK), INPUTS)
    hold_bases_(model)
    describe_(model, INPUTS)
    layers = Layers.of(model)
    assert "0.base_layer" in layers.names
    trained = {name for name in layers.names if not name.endswith("base_layer")}
    assert set(named_groups(layers, "layers")) == trained


def in_random_frame(model: nn.Module, state: Params, seed: int) -> Params:
    """Return a state with the same products of factors, reflected or rotated."""
    turned, stream = dict(state), torch.Generator().manual_seed(seed)
    for each in factors_of(model):
        turn = closest_orthogonal(torch.randn(RANK, RANK, generator=stream, dtype=torch.float64))
        turned[each.first], turned[each.second] = turn @ state[each.first], state[each.second] @ turn.T
    return turned


def merged_loss(model: nn.Module, weights: list[tuple[Params, float]], parts: str = "02") -> float:
    """Return the loss of the base of the first state with the mean of peft's merged weights in some of its layers."""
    merged = []
    for state, _ in weights:
        own = copy_of(model, shares_frozen=False)
        load_state_(own, state)
        merge_(own)
        merged.append(own.state_dict())
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    mean = {key: sum(share * each[key] for each, (_, share) in zip(merged, weights, strict=True)) for key in merged[0]}
    net.load_state_dict({key: (mean if key[0] in parts else merged[0])[key] for key in merged[0]})
    return float(cross_entropy(net(INPUTS), DATA.targets).detach())


@pytest.mark.parametrize("architecture", [nn.Sequential, Untraceable])
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_all_paths_agree_at_their_ends(architecture: type[nn.Sequential], adapter: str) -> None:
    model = adapted(architecture, kind=adapter)
    models, groups = Models(model, states_of(model, 3)), ["adapters", "full", "cumulative-adapters"]
    tables = [barriers(models, DATA, groups=groups, against="pairs", ts=(0, 0.3, 1), path=path) for path in PATHS]
    assert set(tables[0]["group"]) == {"0", "2", "full", "adapters:1", "adapters:2"}
    for table in tables[1:]:
        ends = table["t"] != 0.3
        assert (table["loss"] == tables[0]["loss"])[ends].all()
        assert not (table["loss"] == tables[0]["loss"])[~ends].any()


@pytest.mark.parametrize("architecture", [nn.Sequential, Untraceable])
def test_products_are_mixed_as_the_weights_that_peft_merges(
    architecture: type[nn.Sequential],
) -> None:
    model, ts = adapted(architecture), (0.25, 0.5)
    states = states_of(model, 3)
    mean = list(zip(states, (1 / 8, 2 / 8, 5 / 8), strict=True))
    for state in states[1:]:
        state |= {key: states[0][key] for key in state if "lora" not in key}
    models, groups = Models(model, states, weights=[1, 2, 5]), ["adapters", {"all": "*lora*"}]
    pairs = barriers(models, DATA, groups=groups, against=[(0, 2), (2, 1)], ts=ts, path="product")
    average = barriers(models, DATA, groups=groups, against=[(1, -1)], ts=(0.25, 1), path="product")
    for row in [*pairs.to_dict("records"), *average.to_dict("records")]:
        base, t = states[row["base"]], row["t"]
        others = [(states[row["other"]], 1.0)] if row["other"] >= 0 else mean
        weights = [(base, 1 - t), *((state, t * share) for state, share in others)]
        expected = merged_loss(model, weights, "02" if row["group"] == "all" else row["group"])
        assert row["loss"] == pytest.approx(expected, abs=1e-12)


def test_equal_products_in_other_frames_have_a_barrier_along_factors_only() -> None:
    model = adapted()
    [state] = states_of(model, 1)
    models = Models(model, [in_random_frame(model, state, seed) for seed in range(4)])
    for against in ("pairs", "average"):
        heights = {
            path: barriers(models, DATA, groups=["adapters", "full"], against=against, path=path)["loss_own_base"]
            for path in PATHS
        }
        assert heights["product"].abs().max() < 1e-12
        assert heights["aligned"].abs().max() < 1e-12
        assert heights["factors"].max() > 1e-3


def test_one_factor_alone_is_mixed_along_products_as_along_factors() -> None:
    model = adapted()
    models, groups = Models(model, states_of(model, 3)), ["layers", {"A": "*lora_A*", "B": "*lora_B*"}]
    for against in ("pairs", "average"):
        factors, product, aligned = (
            barriers(models, DATA, groups=groups, against=against, path=path) for path in PATHS
        )
        assert (product["loss"] == factors["loss"]).all()
        moved = (factors["t"] > 0) & factors["group"].str.contains("lora|A|B") & (factors["other"] != factors["base"])
        assert not (aligned["loss"] == factors["loss"])[moved].any()


def test_a_frozen_factor_stays_in_its_frame() -> None:
    model = adapted(freeze="*lora_A*")
    models = Models(model, states_of(model, 2))
    losses = [barriers(models, DATA, groups=["adapters", "full"], path=path)["loss"] for path in PATHS]
    assert losses[0].equals(losses[1])
    assert losses[0].equals(losses[2])


def test_the_closest_frame_is_no_worse_than_any_other() -> None:
    stream = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(*shape, generator=stream).double() for shape in ((3, 7), (5, 3), (3, 7), (5, 3)))

    def distance(first: Tensor, second: Tensor) -> float:
        return float(((first - c) ** 2).sum() + ((second - d) ** 2).sum())

    first, second = in_frame_of(a, b, c, d)
    torch.testing.assert_close(second @ first, b @ a)
    for _ in range(50):
        turn = closest_orthogonal(torch.randn(3, 3, generator=stream).double())
        assert distance(first, second) <= distance(turn @ a, b @ turn.T)


def test_a_path_needs_factors() -> None:
    with pytest.raises(ValueError, match=r"^path = 'product' needs adapters of LoRA, and the model has none; add .*"):
        barriers(Models(adapted(kind="ia3"), states_of(adapted(kind="ia3"), 2)), DATA, path="product")
    plain = nn.Linear(5, 3).double()
    with pytest.raises(ValueError, match=r"^path = 'aligned' needs adapters of LoRA"):
        barriers(Models(plain, states_of(plain, 2)), DATA, path="aligned")
    with pytest.raises(ValueError, match=r"^path = 'x' must be one of factors, product, aligned$"):
        barriers(Models(plain, states_of(plain, 2)), DATA, path="x")
    with pytest.raises(
        ValueError,
        match=r"groups has 'adapters', and no adapter trains in this model; add .*--set model.adapter.kind=lora",
    ):
        barriers(Models(plain, states_of(plain, 2)), DATA, groups="adapters")
