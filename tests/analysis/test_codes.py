"""Integers that models do not have in common, such as masks: each mixed model has the base's."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, relu

from fedsim.analysis import barriers, connectivity, criticality, layer_path, stitching
from fedsim.analysis.models import Models
from fedsim.models.params import Params

N = 70
INPUTS = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(N) % 3


class Masked(nn.Module):
    """Takes some of its units, and an order of its outputs, from buffers."""

    def __init__(self, decides: bool = False) -> None:
        super().__init__()
        self.first, self.norm, self.out, self.decides = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), decides
        self.register_buffer("mask", torch.rand(8) > 0.5)
        self.out.register_buffer("order", torch.randperm(3))

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.norm(self.first(x))) * self.mask
        if self.decides and x.sum() > 1e9:
            x = -x
        return self.out(x)[:, self.out.order]


def masked(decides: bool) -> list[Params]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        states = [Masked(decides).state_dict() for _ in range(3)]
    for number, state in enumerate(states):
        state["norm.num_batches_tracked"] += number
    assert not any(torch.equal(states[a][key], states[b][key]) for key in ("mask", "out.order") for a, b in PAIRS)
    return states


PAIRS = [(0, 1), (2, 1), (1, 0)]


def mix(base: Params, other: Params, t: float, layers: tuple[str, ...] = ("first", "norm", "out")) -> Params:
    moved = [key for key, value in base.items() if value.is_floating_point() and key.partition(".")[0] in layers]
    return base | {key: (1 - t) * base[key] + t * other[key] for key in moved}


def outputs(state: Params) -> Tensor:
    net = Masked().eval()
    net.load_state_dict(state)
    with torch.no_grad():
        return net(INPUTS)


def loss(state: Params) -> float:
    return cross_entropy(outputs(state).double(), TARGETS).item()


@pytest.mark.parametrize("decides", [False, True])
@pytest.mark.parametrize("normalisation", ["interpolate", "base"])
def test_barriers_keep_the_base_s(decides: bool, normalisation: str) -> None:
    states = masked(decides)
    models = Models(Masked(decides), states, normalisation=normalisation)  # type: ignore[arg-type]
    assert (models.mixed.operations(INPUTS) is None) is decides
    pairs = barriers(
        Masked(decides), states, INPUTS, TARGETS, groups=["layers", "full"], against=PAIRS, normalisation=normalisation
    )
    average = {
        key: sum(state[key] for state in states) / 3 if value.is_floating_point() else value
        for key, value in states[0].items()
    }
    averaged = barriers(Masked(decides), states, INPUTS, TARGETS, groups=["layers", "full"])
    for table, rule in ((pairs, normalisation), (averaged, "interpolate")):
        for row in table.to_dict("records"):
            base, other = states[row["base"]], average if row["other"] < 0 else states[row["other"]]
            if rule == "base":
                other = other | {key: base[key] for key in base if "running" in key}
            layers = ("first", "norm", "out") if row["group"] == "full" else (row["group"],)
            assert row["loss"] == pytest.approx(loss(mix(base, other, row["t"], layers)), abs=1e-5), row
            assert row["loss"] - row["loss_own_base"] == pytest.approx(loss(base), abs=1e-5)


@pytest.mark.parametrize("decides", [False, True])
def test_stitched_models_have_each_layer_s_own_and_else_the_base_s(decides: bool) -> None:
    states = masked(decides)
    table = stitching(Masked(decides), states, INPUTS, TARGETS, against=PAIRS)
    for row in table.to_dict("records"):
        base, other = states[row["base"]], states[row["other"]]
        last = ("norm", "out") if row["layer"] == "first" else ("out",)
        stitched = mix(base, other, 1.0, last) | {"out.order": other["out.order"]}
        assert row["loss_ends"] == pytest.approx((loss(base) + loss(other)) / 2, abs=1e-5)
        assert row["loss"] == pytest.approx(loss(stitched), abs=1e-5), row


@pytest.mark.parametrize("decides", [False, True])
def test_features_are_of_the_base_s(decides: bool) -> None:
    states = masked(decides)
    table = connectivity(Masked(decides), states, INPUTS, against=PAIRS, ts=(0.0, 0.3, 1.0))
    last = "out" if decides else "getitem"  # a module gives its outputs before they are ordered
    for row in table[table["layer"] == last].to_dict("records"):
        base, other = states[row["base"]], states[row["other"]]
        if decides:
            base, other = (state | {"out.order": torch.arange(3)} for state in (base, other))
        t = row["t"]
        features = (1 - t) * outputs(base) + t * outputs(other)
        expected = cosine_similarity(outputs(mix(base, other, t)), features).mean().item()
        assert row["cosine"] == pytest.approx(expected, abs=1e-5)


def test_a_path_ends_at_the_second_model_and_a_reset_keeps_the_model_s() -> None:
    states = masked(False)
    path = layer_path(Masked(), states[:2], INPUTS, TARGETS, step=math.inf, train_steps=0, keeps_variance=False)
    assert path["loss"].iloc[[0, -1]].tolist() == pytest.approx([loss(states[0]), loss(states[1])], abs=1e-5)
    codes = {key: value for key, value in states[1].items() if not value.is_floating_point()}
    path = layer_path(Masked(), [states[0], states[0] | codes], INPUTS, TARGETS)
    assert path["loss"].tolist() == pytest.approx([loss(states[0]), loss(states[0] | codes)], abs=1e-5)
    assert (path["distance"] == 0).all()
    reset = criticality(Masked(), states[:2], states[2], INPUTS, TARGETS, groups="full")
    assert reset["loss"].tolist() == pytest.approx([loss(mix(state, states[2], 1.0)) for state in states[:2]], abs=1e-5)
