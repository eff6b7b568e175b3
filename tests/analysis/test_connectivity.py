import copy
import itertools
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import unfold
from torch.utils.flop_counter import FlopCounterMode

from fedsim.analysis.connectivity import ADDITIVITY_TS, connectivity
from fedsim.analysis.features import features
from fedsim.analysis.models import Models
from fedsim.models.architectures import MODELS
from fedsim.models.params import Params
from tests.analysis.cases import mean_of, mlp, models, train_two
from tests.models.test_architectures import ZOO, batch, build

KEYS = ["layer", "base", "other", "t"]


def strange_cnn() -> nn.Module:
    """Strides, dilation, groups and paddings of all kinds."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(6, 4, (3, 2), padding=(1, 0), groups=2, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 2 * 1, 3),
    )


class Block(nn.Module):
    """A residual block with a shortcut that has weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.downsample = nn.Sequential(nn.Conv2d(2, 4, 1, stride=2, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(x)))
        inner = self.bn2(self.conv2(inner))
        inner += self.downsample(x)
        return self.relu(inner)


def resnet() -> nn.Module:
    """Names as in torchvision."""
    stem = OrderedDict(conv1=nn.Conv2d(1, 2, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(2), relu=nn.ReLU())
    head = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(4, 3))
    return nn.Sequential(stem | {"block": Block()} | head)


class Where(NamedTuple):
    """A call of a module: its first input, or its output."""

    module: str
    call: int
    what: str


@dataclass(frozen=True)
class Expected:
    """Where a layer's features, the values before its activation, and its input, if it is linear, are found."""

    features: Where
    before: Where | None = None
    argument: Where | None = None


def out(module: str, call: int = 0) -> Where:
    return Where(module, call, "out")


def into(module: str, call: int = 0) -> Where:
    return Where(module, call, "in")


LAYERS = {
    "mlp": {
        "0": Expected(out("1"), into("1")),
        "2": Expected(out("3"), into("3"), into("2")),
        "4": Expected(out("4"), None, into("4")),
    },
    "strange": {
        "0": Expected(out("1"), into("1")),
        "2": Expected(out("3"), into("3"), into("2")),
        "4": Expected(out("7"), into("5"), into("4")),
        "8": Expected(out("8"), None, into("8")),
    },
    "resnet": {
        "conv1": Expected(out("conv1")),
        "bn1": Expected(out("relu"), into("relu")),
        "block.conv1": Expected(out("block.conv1"), None, into("block.conv1")),
        "block.bn1": Expected(out("block.relu"), into("block.relu")),
        "block.conv2": Expected(out("block.conv2"), None, into("block.conv2")),
        "block.bn2": Expected(out("block.bn2")),
        "block.downsample.0": Expected(out("block.downsample.0"), None, into("block.downsample.0")),
        "block.downsample.1": Expected(out("block.downsample.1")),
        "block": Expected(into("fc"), into("block.relu", 1)),
        "fc": Expected(out("fc"), None, into("fc")),
    },
}
MAKE = {"mlp": mlp, "strange": strange_cnn, "resnet": resnet}


def made(name: str, count: int) -> tuple[nn.Module, list[Params], Tensor]:
    model, states, inputs, _ = models(count, MAKE[name])
    # No example's features are all 0.
    states = [{key: value + 0.5 * key.endswith("bias") for key, value in state.items()} for state in states]
    if name != "mlp":
        inputs = torch.randn(11, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return model, states, inputs


def calls_of(model: nn.Module, state: Params, inputs: Tensor) -> dict[Where, Tensor]:
    """Run a model and keep everything."""
    net = copy.deepcopy(model)
    net.load_state_dict(state)
    net.eval()
    calls: dict[Where, Tensor] = {}
    count = Counter[str]()

    def keep(name: str, args: tuple[Tensor, ...], result: Tensor) -> None:
        calls[into(name, count[name])], calls[out(name, count[name])] = args[0].clone(), result.clone()
        count[name] += 1

    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _, args, result, name=name: keep(name, args, result))
    with torch.no_grad():
        net(inputs)
    return calls


def lerped(first: Params, second: Params, t: float) -> Params:
    return {k: (1 - t) * v + t * second[k] if v.is_floating_point() else v for k, v in first.items()}


def cosines(first: Tensor, second: Tensor) -> np.ndarray:
    a, b = first.flatten(1).numpy(), second.flatten(1).numpy()
    return np.array([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)])


def dist(first: Tensor, second: Tensor) -> float:
    x, y = first.flatten().numpy(), second.flatten().numpy()
    return ((x - y) ** 2).sum() / np.linalg.norm(x) / np.linalg.norm(y)


def columns_of(module: nn.Module, argument: Tensor) -> Tensor:
    """The input of a layer as what its weight, as a matrix, is multiplied with: [n, rest, positions]."""
    if isinstance(module, nn.Linear):
        return argument[..., None]
    padding = module.padding
    if module.padding_mode == "circular":
        argument = nn.functional.pad(argument, (padding[1], padding[1], padding[0], padding[0]), mode="circular")
        padding = (0, 0)
    return unfold(argument, module.kernel_size, module.dilation, padding, module.stride)


def matrix_of(module: nn.Module, weight: Tensor) -> Tensor:
    """The weight as a matrix over all inputs, 0 for those of other groups."""
    groups = getattr(module, "groups", 1)
    return torch.block_diag(*weight.flatten(1).chunk(groups))


def exchanged(module: nn.Module, key: str, states: tuple[Params, Params], inputs: tuple[Tensor, Tensor]) -> list[float]:
    first, second = (matrix_of(module, state[key]) for state in states)
    h_first, h_second = (columns_of(module, each) for each in inputs)
    left = first @ h_first + second @ h_second
    right = first @ h_second + second @ h_first
    return [dist(left, right), dist(first, second), dist(h_first, h_second)]


def slow_row(
    model: nn.Module,
    name: str,
    layer: str,
    ends: tuple[Params, Params],
    calls: list[dict[Where, Tensor]],
    t: float,
    grid: tuple[float, ...],
) -> dict[str, float]:
    expected = LAYERS[name][layer]
    first, second, mixed = calls
    a, b, f = (calls[expected.features] for calls in (first, second, mixed))
    between = ((1 - t) * a + t * b).reshape(a.shape)
    cosine, baseline = cosines(f, between), cosines(a, b)
    factor = ((f * between).flatten(1).sum(1) / between.square().flatten(1).sum(1)).numpy()
    row = {
        "n": len(a),
        "cosine": cosine.mean(),
        "cosine_std": cosine.std(ddof=1),
        "cosine_ends": baseline.mean(),
        "cosine_ends_std": baseline.std(ddof=1),
        "ratio": (1 - cosine).mean() / (1 - baseline).mean(),
        "coefficient": factor.mean(),
        "coefficient_std": factor.std(ddof=1),
    }
    row |= dict.fromkeys(("additivity", "commutativity", "weight_distance", "feature_distance"), np.nan)
    if expected.before:
        z, w = first[expected.before], second[expected.before]
        tail = tail_of(name, layer)
        row["additivity"] = np.mean(
            [
                max(dist(tail((1 - s) * z[i : i + 1] + s * w[i : i + 1]), (1 - s) * a[i] + s * b[i]) for s in grid)
                for i in range(len(a))
            ]
        )
    if expected.argument:
        inputs = first[expected.argument], second[expected.argument]
        found = exchanged(model.get_submodule(layer), f"{layer}.weight", ends, inputs)
        row |= dict(zip(("commutativity", "weight_distance", "feature_distance"), found, strict=True))
    return row


def tail_of(name: str, layer: str) -> nn.Module:
    if name == "strange":
        return {"0": nn.ReLU(), "2": nn.Tanh(), "4": nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))}[layer]
    return nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1)) if layer == "block" else nn.ReLU()


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


@pytest.mark.parametrize("make", [resnet, lambda: MODELS["cnn"]((1, 8, 8), 3)])
def test_a_pair_costs_four_forward_passes(make: Callable[[], nn.Module]) -> None:
    model, inputs = make().eval(), torch.zeros(60, 1, 8, 8)
    states = [{key: value + 0.01 * number for key, value in model.state_dict().items()} for number in range(3)]
    one = flops_of(lambda: model(inputs))
    # Five probes are run four times.
    probes = 4 * flops_of(lambda: model(inputs[:5]))
    pair = flops_of(lambda: connectivity(model, states[:2], inputs, against="pairs")) - probes
    # Without what does not commute for the first layer.
    assert 3 * one < pair <= 4 * one
    average = flops_of(lambda: connectivity(model, states, inputs)) - probes
    # Each state, its mix with the average and their difference; and the average.
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


class Undecided(nn.Module):
    """Cannot be traced; changes what its layer gives in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu_(self.first(x)))
        return self.third(torch.relu_(x)) if float(x.detach().sum()) < 1e9 else x


def test_a_model_that_cannot_be_traced_has_the_features_of_its_modules(caplog: pytest.LogCaptureFixture) -> None:
    plain, states, inputs, _ = models(3)
    model = Undecided().double()
    names = dict(zip("024", ("first", "second", "third"), strict=True))
    renamed = [{f"{names[key[0]]}{key[1:]}": value for key, value in state.items()} for state in states]
    with caplog.at_level(logging.INFO):
        table = connectivity(model, renamed, inputs, ts=(0.3,))
    assert "features of Undecided are what its layers' modules give" in caplog.text
    expected = connectivity(plain, states, inputs, ts=(0.3,))
    assert list(table["layer"].unique()) == list(names.values())
    assert table["additivity"].isna().all()
    columns = ["commutativity", "weight_distance", "feature_distance"]
    np.testing.assert_allclose(table[columns], expected[columns], rtol=1e-10)
    last = [each[each["layer"] == name].drop(columns="layer") for each, name in ((table, "third"), (expected, "4"))]
    np.testing.assert_allclose(*last, rtol=1e-8)
    # Before the activation, in spite of what is done to it afterwards.
    first = table.query("layer == 'first' and base == 0").iloc[0]
    average = mean_of(states, [1.0] * 3)
    a, b = (inputs @ state["0.weight"].T + state["0.bias"] for state in (states[0], average))
    assert first["cosine_ends"] == pytest.approx(cosines(a, b).mean(), rel=1e-12)
    assert first["cosine"] == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("name", ["vit", "gpt", "char-lstm", "mobilenet"])
def test_networks_of_other_kinds_have_features(name: str) -> None:
    model, inputs = build(name), batch(ZOO[name].shape, 7)
    taken = Models(model, [model.state_dict()]).features(inputs, [0])
    names = [site.name for site in taken.sites]
    assert len(set(names)) == len(names)
    assert {"vit": "encoder.layers.encoder_layer_1", "gpt": "h.1", "char-lstm": "lstm.1", "mobilenet": "features.18.0"}[
        name
    ] in names
    assert names[-1] == ZOO[name][2]
    (last,) = taken.map(lambda x: [values[0].features for _, values in taken.walk(x)][-1])
    torch.testing.assert_close(last, model(inputs), rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_used_again_has_rows_of_its_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.inner(torch.relu(self.inner(x))))

    model = Twice().double()
    inputs = models(1)[2]
    table = connectivity(model, [model.state_dict()], inputs)
    assert list(table["layer"].unique()) == ["inner:1", "inner", "head"]


def test_threads_change_nothing_and_the_model_stays_as_it_was() -> None:
    model, states, inputs = made("resnet", 3)
    inputs = inputs.repeat(20, 1, 1, 1)
    before, model.training = copy.deepcopy(model.state_dict()), True
    one, three = (connectivity(model, states, inputs, threads=threads) for threads in (1, 3))
    pd.testing.assert_frame_equal(one, three, check_exact=True)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, states, inputs = made("strange", 2)
    whole = connectivity(model, states, inputs)
    monkeypatch.setattr(features, "CPU_TILE", 4)
    parts = connectivity(model, states, inputs)
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-11)
    assert not whole["cosine_std"].equals(parts["cosine_std"])


def test_numbers_do_not_depend_on_what_else_is_asked_for() -> None:
    model, states, inputs = made("mlp", 3)
    every = connectivity(model, states, inputs, against="pairs", ts=(0.0, 0.3, 1.0))
    assert every.groupby("layer")[["base", "other"]].size().eq(9).all()
    few = connectivity(model, states, inputs, against=[(1, 2), (0, 2)], ts=(0.3,))
    same = every.merge(few[KEYS], on=KEYS)
    assert len(same) == len(few) == 6
    pd.testing.assert_frame_equal(same, few.sort_values(["layer", "base"]).reset_index(drop=True))
    # From the other end.
    back = connectivity(model, states, inputs, against=[(2, 1)], ts=(0.7,)).drop(columns=KEYS)
    np.testing.assert_allclose(back, few.query("base == 1").drop(columns=KEYS), rtol=1e-9)


def test_a_model_of_zeros_commutes_with_none() -> None:
    model, states, inputs = made("mlp", 2)
    zeros = {key: torch.zeros_like(value) for key, value in states[0].items()}
    for dtype in (torch.float32, torch.float64):
        pair = [{key: value.to(dtype) for key, value in state.items()} for state in (zeros, states[1])]
        table = connectivity(model.to(dtype), pair, inputs.to(dtype), against="pairs")
        # W_A H_B + W_B H_A is 0, computed from two terms that cancel.
        assert np.isinf(table["commutativity"].dropna()).all()


def test_no_pairs_are_no_rows() -> None:
    model, states, inputs = made("mlp", 2)
    every, none = (connectivity(model, states, inputs, against=against) for against in ("pairs", []))
    assert len(none) == 0
    assert list(none.columns) == list(every.columns)


def test_wrong_arguments_are_named() -> None:
    model, states, inputs = made("mlp", 2)
    for options, message in (
        ({"against": [(0, 5)]}, r"pair \(0, 5\)"),
        ({"ts": [2.0]}, "must be from 0 to 1"),
        ({"ts": ()}, "ts is empty; give at least one"),
        ({"additivity_ts": [-1.0]}, "additivity_ts has -1.0"),
        ({"weights": [1.0]}, "1 weights for 2 members"),
        ({"against": "all"}, "against = 'all'"),
    ):
        with pytest.raises(ValueError, match=message):
            connectivity(model, states, inputs, **options)
    with pytest.raises(ValueError, match="there is 1 state"):
        connectivity(model, states[:1], inputs, against="pairs")
    with pytest.raises(ValueError, match="there are no inputs; give at least one"):
        connectivity(model, states, inputs[:0])
