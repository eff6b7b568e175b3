import copy
import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedsim.analysis.connectivity import ADDITIVITY_TS, connectivity
from fedsim.analysis.models import Models
from fedsim.models.architectures import MODELS
from tests.analysis.cases import mean_of, models, train_two
from tests.analysis.slow_connectivity import (
    LAYERS,
    MAKE,
    calls_of,
    cosines,
    dist,
    lerped,
    made,
    resnet,
    slow_row,
    tail_of,
)


@pytest.mark.parametrize("name", list(MAKE))
def test_every_column_agrees_with_a_slow_implementation(name: str) -> None:
    model, states, inputs = made(name, 3)
    grid = (0.2, 0.7)
    tables = [
        connectivity(model, states, inputs, weights=[1.0, 2.0, 5.0], ts=(0.3,), additivity_ts=grid),
        connectivity(model, states, inputs, against=[(2, 0)], ts=(0.3,), additivity_ts=grid),
    ]
    compared = [*states, mean_of(states, [1.0, 2.0, 5.0])]
    checked = 0
    for (base, other), rows in pd.concat(tables).query("base >= 0").groupby(["base", "other"]):
        ends = compared[base], compared[other]
        calls = [calls_of(model, state, inputs) for state in (*ends, lerped(*ends, 0.3))]
        for _, row in rows[rows["layer"].isin(LAYERS[name])].iterrows():
            for column, value in slow_row(model, name, row["layer"], ends, calls, row["t"], grid).items():
                assert row[column] == pytest.approx(value, rel=1e-9, abs=1e-13, nan_ok=True), (row["layer"], column)
            checked += 1
    assert checked == 4 * len(LAYERS[name])
    assert list(tables[1]["layer"]) == list(LAYERS[name])


def test_the_average_of_all_is_compared_with_the_average_of_all_features() -> None:
    model, states, inputs = made("resnet", 3)
    shares = np.array([1.0, 2.0, 5.0]) / 8
    table = connectivity(model, states, inputs, weights=[1.0, 2.0, 5.0]).query("base == -1").set_index("layer")
    every = [calls_of(model, state, inputs) for state in states]
    average = calls_of(model, mean_of(states, [1.0, 2.0, 5.0]), inputs)
    pairs = list(itertools.combinations(range(3), 2))
    for layer, expected in LAYERS["resnet"].items():
        of = [calls[expected.features] for calls in every]
        mean = sum(share * each for share, each in zip(shares, of, strict=True))
        cosine = cosines(average[expected.features], mean)
        weight = np.array([shares[i] * shares[j] for i, j in pairs])
        ends = np.average([cosines(of[i], of[j]) for i, j in pairs], axis=0, weights=weight)
        row = table.loc[layer]
        assert (row["other"], row["t"], row["n"]) == (-1, 1.0, 11)
        assert row["cosine"] == pytest.approx(cosine.mean(), rel=1e-10)
        assert row["cosine_ends"] == pytest.approx(ends.mean(), rel=1e-10)
        assert row["cosine_ends_std"] == pytest.approx(ends.std(ddof=1), rel=1e-8)
        assert row["ratio"] == pytest.approx((1 - cosine.mean()) / (1 - ends.mean()), rel=1e-8)
        if expected.before:
            tail = tail_of("resnet", layer)
            before = sum(share * calls[expected.before] for share, calls in zip(shares, every, strict=True))
            distances = [dist(tail(before[i : i + 1]), mean[i]) for i in range(len(inputs))]
            assert row["additivity"] == pytest.approx(np.mean(distances), rel=1e-9)
    assert table[["commutativity", "weight_distance", "feature_distance"]].isna().all(axis=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("against", ["average", "pairs"])
def test_equal_models_are_connected_exactly(against: str, dtype: torch.dtype) -> None:
    model, states, inputs = made("resnet", 1)
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in states[0].items()}
    table = connectivity(model.to(dtype), [state] * 3, inputs.to(dtype), against=against, ts=(0.3, 1.0))
    exact = table[["cosine", "cosine_ends", "coefficient"]].to_numpy()
    assert exact == pytest.approx(1.0, abs=1e-6 if dtype == torch.float32 else 1e-14)
    assert (table["cosine"] == 1).all()
    assert (table["cosine_ends"] == 1).all()
    # 0 / 0.
    assert table["ratio"].isna().all()
    assert table["additivity"].max() < 1e-12
    of_layers = table[["commutativity", "weight_distance", "feature_distance"]].dropna()
    assert len(of_layers)
    assert (of_layers == 0).all(axis=None)


def test_models_that_are_close_keep_their_digits() -> None:
    model, states, inputs = made("mlp", 1)
    other = {
        key: value + 1e-5 * torch.arange(value.numel()).view(value.shape).sin() for key, value in states[0].items()
    }
    exact = connectivity(model, [states[0], other], inputs, against="pairs")
    # Nothing but the computation itself is in float32: the weights are the same numbers.
    states32 = [{key: value.float() for key, value in state.items()} for state in (states[0], other)]
    again = [{key: value.double() for key, value in state.items()} for state in states32]
    exact = connectivity(model, again, inputs.float().double(), against="pairs")
    found = connectivity(model.float(), states32, inputs.float(), against="pairs")
    assert (1 - exact["cosine_ends"]).max() < 1e-6
    for column in ("cosine_ends", "commutativity"):
        gap = (1 - exact[column], 1 - found[column]) if column == "cosine_ends" else (exact[column], found[column])
        np.testing.assert_allclose(gap[1].dropna(), gap[0].dropna(), rtol=0.02)


def test_activations_that_do_not_bend_are_additive() -> None:
    model, states, inputs = made("mlp", 2)
    # Equal signs everywhere: a positive multiple of the first layer.
    scaled = dict(states[0]) | {key: 2.5 * value for key, value in states[0].items() if key.startswith("0.")}
    table = connectivity(model, [states[0], scaled, states[1]], inputs, against="pairs", additivity_ts=ADDITIVITY_TS)
    table = table.set_index(["base", "other", "layer"])["additivity"]
    assert table[0, 1, "0"] < 1e-30
    assert table[0, 2, "0"] > 1e-3
    # All units active: a linear network.
    active = [state | {key: 100 + value for key, value in state.items() if key.endswith("bias")} for state in states]
    active = [state | {"2.weight": state["2.weight"].abs()} for state in active]
    assert connectivity(model, active, inputs, against="pairs")["additivity"].max() < 1e-25
    linear = nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(1.0), nn.Linear(8, 3)).double()
    found = connectivity(linear, [linear.state_dict(), linear.state_dict()], inputs, against="pairs")
    assert found["additivity"].isna().all()


def test_the_cosine_does_not_see_the_scale_of_features() -> None:
    model, states, inputs = made("mlp", 2)
    scaled = [state | {key: 3.7 * value for key, value in state.items() if key[0] == "4"} for state in states]
    plain, other = (connectivity(model, each, inputs, against="pairs", ts=(0.2,)) for each in (states, scaled))
    pd.testing.assert_frame_equal(plain, other, rtol=1e-10)


def test_features_of_a_linear_layer_miss_by_what_does_not_commute() -> None:
    # Theorem 1's identity: f_t - f_int = -t (1 - t) (left - right), where the inputs of the layer mix exactly.
    t = 0.3
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.Linear(8, 6, bias=False)).double()
    _, states, inputs, _ = models(
        2, lambda: copy.deepcopy(model).apply(lambda m: hasattr(m, "reset_parameters") and m.reset_parameters())
    )
    x = inputs[:1]
    row = connectivity(model, states, x, against="pairs", ts=(t,)).query("layer == '1'").iloc[0]
    (w, v), (h, g) = ([s["1.weight"] for s in states], [x @ s["0.weight"].T for s in states])
    left, right = w @ h[0] + v @ g[0], w @ g[0] + v @ h[0]
    between = (1 - t) * w @ h[0] + t * v @ g[0]
    # From the cosine and the coefficient follows how long f_t - f_int is.
    length = between.square().sum() * (row["coefficient"] ** 2 / row["cosine"] ** 2 - 2 * row["coefficient"] + 1)
    exchanged = row["commutativity"] * left.norm() * right.norm()
    assert float(length) == pytest.approx(float((t * (1 - t)) ** 2 * exchanged), rel=1e-10)
    assert row["commutativity"] > 0.01


def test_mixed_outputs_err_only_where_one_of_the_models_does() -> None:
    # Lemma 1 with the features themselves.
    trained = train_two(same_start=False)
    taken = Models(trained.model, trained.finals).features(trained.inputs, [0, 1])
    logits = [
        torch.cat(each)
        for each in zip(*taken.map(lambda x: [v.features for v in list(taken.walk(x))[-1][1]]), strict=True)
    ]
    first, second = (each.argmax(1) != trained.targets for each in logits)
    assert first.any()
    assert second.any()
    for t in (0.2, 0.5, 0.9):
        mixed = torch.lerp(*logits, t).argmax(1) != trained.targets
        assert not (mixed & ~first & ~second).any()


def test_networks_from_one_start_are_connected_and_others_are_not() -> None:
    tables = {}
    for same in (True, False):
        trained = train_two(same_start=same)
        tables[same] = connectivity(trained.model, trained.finals, trained.inputs, against="pairs").set_index("layer")
    together, apart = tables[True], tables[False]
    assert (1 - together["cosine"] < 0.05 * (1 - apart["cosine"])).all()
    assert (together["ratio"] < 0.15 * apart["ratio"]).all()
    assert (together["additivity"].dropna() < 0.05 * apart["additivity"].dropna()).all()
    controls = together[["weight_distance", "feature_distance"]].min(axis=1)
    assert (together["commutativity"] < 0.05 * controls).dropna().any()
    assert (together["commutativity"].dropna() < 0.05 * controls.dropna()).all()
    assert (apart["commutativity"].dropna() > 0.5).all()


def flops_of(run: object) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("make", [resnet, lambda: MODELS["cnn"]((1, 8, 8), 3)])
def test_a_pair_costs_four_forward_passes(make: Callable[[], nn.Module]) -> None:
    model, inputs = make().eval(), torch.zeros(60, 1, 8, 8)
    states = [{key: value + 0.01 * number for key, value in model.state_dict().items()} for number in range(3)]
    one = flops_of(lambda: model(inputs))
    two, three = Models(model, states[:2]), Models(model, states)
    first, pair = (flops_of(lambda: connectivity(two, inputs, against="pairs")) for _ in range(2))
    # Without what does not commute for the first layer.
    assert 3 * one < pair <= 4 * one
    # The model is checked and traced once: five probes are run as often as seven times.
    assert 0 < first - pair <= 7 * flops_of(lambda: model(inputs[:5]))
    # Of a pair in both directions the mix is the same, and only the difference is measured again.
    assert flops_of(lambda: connectivity(two, inputs, against=[(0, 1), (1, 0)])) < pair + one
    # Each state, its mix with the average and their difference; and the average.
    average = flops_of(lambda: connectivity(three, inputs)) - (first - pair)
    assert average <= (3 * 3 + 1) * one


def test_where_features_are_zero_angles_are_defined() -> None:
    model, states, inputs = made("mlp", 1)
    dead = dict(states[0]) | {"0.weight": torch.zeros(8, 5).double(), "0.bias": -torch.ones(8).double()}
    table = connectivity(model, [dead, dead, states[0]], inputs, against="pairs", ts=(0.0, 0.5)).query("layer == '0'")
    table = table.set_index(["base", "other", "t"])
    both, one = table.loc[0, 1], table.loc[0, 2]
    assert (both[["cosine", "cosine_ends", "coefficient"]] == 1).all(axis=None)
    assert (both["additivity"] == 0).all()
    assert (one["cosine_ends"] == 0).all()
    # At t = 0 the mixed model is dead, as is its base, half of whose features nothing is.
    assert one.loc[0.0, "cosine"] == 1
    # Where the mixed values are all negative there is no distance; of the others it is the mean.
    z = inputs @ states[0]["0.weight"].T + states[0]["0.bias"]

    def distances(t: float) -> Tensor:
        mixed, between = (t * z - (1 - t)).clamp(min=0), t * z.clamp(min=0)
        return (mixed - between).square().sum(1) / mixed.norm(dim=1) / between.norm(dim=1)

    half, most = distances(0.5), distances(0.9)
    alive = half.isfinite()
    assert 0 < alive.sum() < most.isfinite().sum()
    assert one.loc[0.5, "additivity"] == pytest.approx(float(half[alive].mean()), rel=1e-10)
    # An example that has a distance at another t counts with that.
    table = connectivity(model, [dead, states[0]], inputs, against="pairs", additivity_ts=(0.5, 0.9))
    largest = torch.maximum(half.where(alive, 0), most)
    assert table["additivity"][0] == pytest.approx(float(largest[most.isfinite()].mean()), rel=1e-10)
    average = connectivity(model, [dead, dead, states[0]], inputs, weights=[1.0, 1.0, 2.0])
    row = average.query("layer == '0' and base == -1").iloc[0]
    # Of the three pairs one agrees, with weight 1, and two do not, with weight 2 each.
    assert row["cosine_ends"] == pytest.approx(1 / 5)
