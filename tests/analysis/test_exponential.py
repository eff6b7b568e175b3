"""Networks without common hidden units have exponentially weighted features, and need a temperature, exactly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fedsim.analysis import Data, Models, barriers, calibrated, connectivity
from fedsim.analysis.calibration import best_beta
from fedsim.analysis.features.exponential import NO_STRUCTURE, no_structure
from fedsim.analysis.settings import Settings
from fedsim.analysis.suite import MEASURES
from fedsim.models.params import Params
from tests.analysis.cases import models, norm_net

GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def disjoint() -> tuple[nn.Module, list[Params], Tensor]:
    """Return a network of three layers without biases, two states that use one half of its units each, and inputs."""
    GENERATOR.manual_seed(0)
    layers = [nn.Linear(5, 12, bias=False), nn.ReLU(), nn.Linear(12, 8, bias=False), nn.ReLU()]
    states = []
    for half in (0, 1):
        first, second = (torch.arange(size) // (size // 2) == half for size in (12, 8))
        states.append(
            {
                "0.weight": draw(12, 5) * first[:, None],
                "2.weight": draw(8, 12) * second[:, None] * first,
                "4.weight": draw(3, 8) * second,
            }
        )
    return nn.Sequential(*layers, nn.Linear(8, 3, bias=False)).double(), states, draw(40, 5)


@pytest.mark.parametrize("t", [0.5, 0.3])
def test_disjoint_networks_have_exponentially_weighted_features(t: float) -> None:
    model, states, inputs = disjoint()
    table = connectivity(model, states, inputs, against="pairs", ts=(t,), exponential=True)
    assert table["exponential"].to_numpy() == pytest.approx(1.0, abs=1e-12)
    assert table["reciprocal"].iloc[1:].to_numpy() == pytest.approx(0.0, abs=1e-12)
    assert (table["exponential_shuffled"] < 0.99).all()
    if t != 0.5:
        assert (table["cosine"].iloc[1:] < 0.98).all()  # they are not linearly connected
    plain = connectivity(model, states, inputs, against="pairs", ts=(t,))
    assert list(plain) == list(table)[: len(plain.columns)]
    assert table[list(plain)].equals(plain)


def test_without_structure_the_cosine_is_the_control() -> None:
    first, second = draw(2, 4, 100_000)
    mixed, features = ((first + second) / 2).relu(), (first.relu() + second.relu()) / 2
    assert torch.cosine_similarity(mixed, features).numpy() == pytest.approx(NO_STRUCTURE, abs=4e-3)
    assert pytest.approx(0.9304, abs=5e-5) == NO_STRUCTURE


def test_equal_models_overlap_fully_and_a_normalisation_restarts_the_count() -> None:
    model, (a, b, _), inputs, _ = models(3, norm_net)
    same = connectivity(model, [a, a], inputs, against="pairs", exponential=True)
    assert same["exponential"].to_numpy() == pytest.approx(1.0)
    assert same["reciprocal"].dropna().to_numpy() == pytest.approx(1.0)
    table = connectivity(model, [a, b], inputs, against=[(0, 1)], ts=(0.25,), exponential=True)
    last = table[table["layer"] == "3"]
    with torch.no_grad():
        mixed = {key: torch.lerp(a[key], b[key], 0.25) if a[key].is_floating_point() else a[key] for key in a}
        model.eval()
        outputs = [torch.func.functional_call(model, state, (inputs,)) for state in (mixed, a, b)]
    depth = 2  # of the last layer: the normalisation's weight, and its own
    expected = torch.cosine_similarity(outputs[0], 0.75**depth * outputs[1] + 0.25**depth * outputs[2]).mean()
    assert last["exponential"].to_numpy() == pytest.approx(float(expected))
    assert list(last["depth"]) == [depth]


def test_the_average_has_the_units_of_each_model_and_is_not_compared_with_them() -> None:
    model, states, inputs = disjoint()
    table = connectivity(model, states, inputs, ts=(0.5,), exponential=True)
    assert set(table["other"]) == {-1}
    assert table[["exponential", "exponential_shuffled", "reciprocal"]].isna().all(axis=None)
    settings = Settings(Data(inputs, torch.arange(40) % 3))
    found = MEASURES["exponential"].table(Models(model, [*states, states[0]]), settings)
    assert list(dict.fromkeys(zip(found["base"], found["other"], strict=True))) == [(0, 1), (0, 2), (1, 2)]
    apart = found[(found["base"] != 0) | (found["other"] != 2)]
    assert apart["exponential"].to_numpy() == pytest.approx(1.0, abs=1e-12)


def test_calibration_undoes_the_factor_of_disjoint_networks_and_is_the_best_temperature() -> None:
    model, states, inputs = disjoint()
    logits = [torch.func.functional_call(model, state, (inputs,)) for state in states]
    mean = ((logits[0] + logits[1]) / 2).detach()
    targets = (mean + 2 * draw(40, 3)).argmax(1)
    table = calibrated(model, states, inputs, targets, against=[(0, 1)], ts=(0.0, 0.5))
    start, middle = table.to_dict("records")
    assert middle["beta"] == pytest.approx(4 * best_beta(mean, targets), rel=1e-4)  # 2 ** (L - 1)
    losses = [float(cross_entropy(beta * mean, targets)) for beta in np.geomspace(1e-3, 1e2, 400)]
    assert middle["loss_calibrated"] == pytest.approx(min(losses), abs=1e-3)
    assert middle["loss_calibrated"] <= min(losses) + 1e-9
    own = [float(cross_entropy(each, targets)) for each in logits]
    best = [float(cross_entropy(best_beta(each.detach(), targets) * each, targets)) for each in logits]
    assert start["loss"] == pytest.approx(own[0])
    assert middle["barrier"] == pytest.approx(middle["loss"] - sum(own) / 2)
    assert middle["barrier_merged"] == pytest.approx(middle["loss_calibrated"] - sum(own) / 2)
    assert middle["barrier_all"] == pytest.approx(middle["loss_calibrated"] - sum(best) / 2)
    with pytest.raises(ValueError, match="targets are not classes"):
        calibrated(model, states, inputs, mean)


@pytest.mark.parametrize("normalisation", ["interpolate", "base", "recompute"])
def test_barriers_without_calibration_are_those_of_the_barriers(normalisation: Any) -> None:
    layers = [nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)]
    model, inputs, targets = nn.Sequential(*layers).double(), draw(40, 5), torch.arange(40) % 3
    states = [
        {key: draw(*value.shape).square() if value.ndim else value for key, value in model.state_dict().items()}
        for _ in range(3)
    ]
    given = Models(model, states, normalisation=normalisation, calibration=draw(30, 5))
    for against, ts in (([(0, 1), (1, 0)], (0.0, 0.25, 1.0)), ("average", (1.0,))):
        settings = Settings(Data(inputs, targets), against=against, ts=ts)
        found = MEASURES["calibrated"].table(given, settings)
        barrier = barriers(given, Data(inputs, targets), groups="full", against=against, ts=ts)
        both = found.merge(barrier, on=["base", "other", "t"], validate="one_to_one", suffixes=("", "_expected"))
        # Both directions of a pair are the same model, unless each keeps the statistics of its base.
        once = against != "average" and normalisation != "base"
        assert len(both) == len(found) == len(barrier) / (2 if once else 1)
        assert both["loss"].to_numpy() == pytest.approx(both["loss_expected"].to_numpy())
        assert both["barrier"].to_numpy() == pytest.approx(both["loss_mean_ends"].to_numpy())


class Swapped(nn.Module):
    """Gives the classes of tokens as the second dimension."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.movedim(-1, 1)


def test_losses_are_means_over_the_targets_that_count() -> None:
    model = nn.Sequential(nn.Embedding(9, 9), Swapped()).double()
    states = [{"0.weight": draw(9, 9)} for _ in range(2)]
    tokens = torch.arange(150).view(30, 5) % 9
    mean = (states[0]["0.weight"] + states[1]["0.weight"])[tokens].movedim(-1, 1) / 2
    targets = (mean + 2 * draw(30, 9, 5)).argmax(1)
    targets[:20, 1:] = -100
    found = calibrated(model, states, tokens, targets, against="pairs", ts=(0.5,))
    barrier = barriers(model, states, tokens, targets, groups="full", against="pairs", ts=(0.5,))
    assert found["loss"].to_numpy() == pytest.approx(barrier["loss"].to_numpy())
    assert found["barrier"].to_numpy() == pytest.approx(barrier["loss_mean_ends"].to_numpy())
    best = min(float(cross_entropy(beta * mean, targets)) for beta in np.geomspace(1e-3, 1e2, 1000))
    assert found["loss_calibrated"].to_numpy() == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize(
    ("inputs", "targets", "problem"),
    [
        (5, draw(5), "targets of fit are not classes"),
        (5, torch.zeros(3, dtype=torch.int64), "fit: there are 3 targets for 5 inputs; give one for each"),
        (0, torch.zeros(0, dtype=torch.int64), "fit: there are no inputs; give at least one"),
    ],
)
def test_what_beta_is_fitted_on_is_checked(inputs: int, targets: Tensor, problem: str) -> None:
    model, states, own = disjoint()
    classes = torch.zeros(40, dtype=torch.int64)
    with pytest.raises(ValueError, match=problem):
        calibrated(model, states, own, classes, fit=Data(own[:inputs], targets))
    with pytest.raises(TypeError, match=r"fit is a tuple; give Data\(inputs, targets\)"):
        calibrated(model, states, own, classes, fit=(own, classes))


def test_units_are_shuffled_and_not_tokens() -> None:
    model, states, inputs = disjoint()
    tokens = inputs[:, None].expand(-1, 4, -1)  # the same at each place
    found, plain = (connectivity(model, states, x, against="pairs", exponential=True) for x in (tokens, inputs))
    assert found["exponential_shuffled"].to_numpy() == pytest.approx(plain["exponential_shuffled"].to_numpy())


class Transposed(nn.Module):
    """Takes the units of a layer for tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h = nn.Linear(4, 9, bias=False), nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.relu(self.a(x)).transpose(1, 2)).mean(1)


@pytest.mark.parametrize(
    ("model", "shape", "axis"),
    [
        (nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)), (1, 6, 6), 1),
        (Transposed(), (5, 4), 2),
    ],
)
def test_units_are_shuffled_before_they_become_something_else(
    model: nn.Module, shape: tuple[int, ...], axis: int
) -> None:
    key, layer = next((key, layer) for key, layer in model.named_children())
    weights, inputs = [draw(*layer.weight.shape).float() for _ in range(2)], draw(30, *shape).float()
    states = [{**model.state_dict(), f"{key}.weight": weight} for weight in weights]
    found = connectivity(model, states, inputs, against="pairs", ts=(0.5,), exponential=True)
    base, other, mixed = (
        functional_call(layer, {"weight": weight}, (inputs,)).relu() for weight in (*weights, sum(weights) / 2)
    )
    order = torch.from_numpy(np.random.default_rng(0).permutation(other.shape[axis]))
    expected = (base + other.index_select(axis, order)) / 2  # of one weighted sum each
    cosine = torch.cosine_similarity(mixed.flatten(1), expected.flatten(1)).mean()
    assert found["exponential_shuffled"].iloc[0] == pytest.approx(float(cosine), abs=1e-6)


class Branched(nn.Module):
    """Adds what two layers give to what one, or two, give."""

    def __init__(self, residual: bool, norm: bool = False) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 12, bias=False), nn.Linear(12 if residual else 5, 12, bias=False)
        self.norm = nn.LayerNorm(12, elementwise_affine=False) if norm else nn.Identity()
        self.fc3 = nn.Linear(12, 3, bias=False)
        self.residual = residual
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.fc1(inputs).relu()
        return self.fc3(self.norm(hidden + self.fc2(hidden if self.residual else inputs).relu()))


def halves(model: nn.Module) -> list[Params]:
    """Return two states of which each uses its own half of the hidden units."""
    states = []
    for half in (0, 1):
        own = (torch.arange(12) // 6 == half).double()
        masks = {"fc1.weight": own[:, None], "fc3.weight": own, "fc2.weight": own[:, None]}
        if getattr(model, "residual", False):
            masks["fc2.weight"] = own[:, None] * own
        states.append({key: draw(*value.shape) * masks[key] for key, value in model.state_dict().items()})
    return states


def test_branches_of_one_depth_are_weighted_and_those_of_different_depths_have_no_exponent() -> None:
    for residual in (False, True):
        model = Branched(residual)
        table = connectivity(model, halves(model), draw(40, 5), against="pairs", ts=(0.3,), exponential=True)
        found = table.set_index("layer")["exponential"]
        assert found["fc1"] == pytest.approx(1.0, abs=1e-12)
        assert found["fc2"] == pytest.approx(1.0, abs=1e-12)
        if residual:
            assert np.isnan(found["fc3"])
            assert table["reciprocal"].iloc[-1] == pytest.approx(0.0, abs=1e-12)
        else:
            assert found.to_numpy() == pytest.approx(1.0, abs=1e-12)


def test_a_normalisation_after_branches_of_different_depths_has_an_exponent_again() -> None:
    model = Branched(residual=True, norm=True)
    states = [{key: draw(*value.shape) for key, value in model.state_dict().items()} for _ in range(2)]
    inputs = draw(40, 5)
    found = connectivity(model, states, inputs, against="pairs", ts=(0.3,), exponential=True).set_index("layer")
    mixed = {key: torch.lerp(states[0][key], states[1][key], 0.3) for key in states[0]}
    outputs = [torch.func.functional_call(model, state, (inputs,)).detach() for state in (mixed, *states)]
    expected = torch.cosine_similarity(outputs[0], 0.7 * outputs[1] + 0.3 * outputs[2]).mean()
    assert found.loc["fc3", "exponential"] == pytest.approx(float(expected), rel=1e-9)


class Scaled(nn.Module):
    """Normalises its inputs and scales its hidden units by buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 6, bias=False), nn.Linear(6, 3, bias=False)
        self.register_buffer("mean", draw(5))
        self.register_buffer("scale", 1 + draw(6).abs())
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc2(self.fc1((inputs - self.mean) / 0.7).relu() * self.scale)


def test_buffers_are_no_weights() -> None:
    model, inputs = Scaled(), draw(20, 5)
    buffers = dict(model.named_buffers())
    weights = {key: draw(*value.shape) for key, value in model.named_parameters()}
    once, grown = (
        functional_call(model, buffers | {key: factor * value for key, value in weights.items()}, (inputs,))
        for factor in (1, 3)
    )
    table = connectivity(model, [buffers | weights] * 2, inputs, against="pairs", exponential=True)
    assert torch.allclose(grown, 9 * once)
    assert list(table["depth"]) == [1, 2]
    assert table["exponential"].notna().all()


class Product(nn.Module):
    """Multiplies two branches, in one of several ways, before the last layer."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(*sizes, bias=False) for sizes in ((5, 12), (5, 12), (12, 3)))
        self.way = way
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        a, b = self.a(inputs).relu(), self.b(inputs).relu()
        if self.way == "square":
            return self.c(a * a)
        if self.way == "matmul":
            return self.c((a[:, :, None] @ b[:, None]).diagonal(dim1=1, dim2=2))
        if self.way == "tensordot":
            return torch.tensordot(a.mul(b), self.c.weight, dims=([1], [1]))
        if self.way == "functional":
            return nn.functional.linear(a.mul(b), self.c.weight)
        return self.c(a.softmax(-1) * b if self.way == "softmax" else a * b)


@pytest.mark.parametrize("way", ["mul", "square", "matmul", "functional", "tensordot", "softmax"])
def test_the_powers_of_factors_add_up_and_a_softmax_has_none(way: str) -> None:
    model = Product(way)
    states = []
    for half in (0, 1):
        own = (torch.arange(12) // 6 == half).double()
        states.append(
            {
                "a.weight": draw(12, 5) * own[:, None],
                "b.weight": draw(12, 5) * own[:, None],
                "c.weight": draw(3, 12) * own,
            }
        )
    table = connectivity(model, states, draw(40, 5), against="pairs", ts=(0.25,), exponential=True)
    last = table.iloc[-1]
    if way == "softmax":
        assert np.isnan(last["exponential"])
        assert np.isnan(last["depth"])
    else:
        assert last["depth"] == 3
        assert last["exponential"] == pytest.approx(1.0, abs=1e-12)


# The others take other arguments or give other shapes.
@pytest.mark.parametrize(
    "name", sorted(set(nn.modules.activation.__all__) - {"MultiheadAttention", "GLU", "Threshold", "Softmax2d"})
)
def test_homogeneous_activations_alone_keep_the_power(name: str) -> None:
    with_dim = name in ("Softmin", "Softmax", "LogSoftmax")
    activation = getattr(nn, name)(-1) if with_dim else getattr(nn, name)()
    model = nn.Sequential(nn.Linear(5, 6, bias=False), activation, nn.Linear(6, 3, bias=False)).double().eval()
    inputs, state = draw(20, 5), {key: draw(*value.shape) for key, value in model.state_dict().items()}
    once, grown = (
        functional_call(model, {key: factor * value for key, value in state.items()}, (inputs,)) for factor in (1, 3)
    )
    last = connectivity(model, [state, state], inputs, against="pairs", exponential=True).iloc[-1]
    assert (last["depth"] == 2) == torch.allclose(grown, 9 * once)


@pytest.mark.parametrize(
    ("function", "depth"),
    [
        (lambda z: z.abs().sqrt(), None),
        (lambda z: z.abs().log1p(), None),
        (torch.atan, None),
        (lambda z: (z + 3).relu() / 6, None),
        (lambda z: torch.sub(z, other=1), None),
        (lambda z: 1 - z, None),
        (lambda z: z.clamp(min=0, max=1), None),
        (lambda z: z.clamp(1), None),
        (lambda z: nn.functional.pad(z, (1, -1), value=2.0), None),
        (lambda z: nn.functional.threshold(z, 0.1, 20), None),
        (lambda z: z.div(0.1, rounding_mode="floor"), None),
        (lambda z: z.var(1, keepdim=True) + z, None),
        (lambda z: z.floor(), None),
        (lambda z: torch.addcmul(z, z, z), None),
        (lambda z: z + z.square(), None),
        (lambda z: z + z.new_ones(6), None),
        (lambda z: nn.functional.local_response_norm(z[:, :, None], 2)[..., 0], None),
        (lambda z: z.clamp(min=0), 2),
        (lambda z: torch.clip(z, max=0), 2),
        (lambda z: z.clamp_min(0.0), 2),
        (lambda z: 0 - z + 0.0, 2),
        (lambda z: nn.functional.pad(z, (1, -1)), 2),
        (lambda z: nn.functional.max_pool1d(-z, 3, 1, 1), 2),
        (lambda z: z.amax(1, keepdim=True) + z.flip(1).mean(1, keepdim=True) - z.abs() / 3, 2),
        (lambda z: torch.cat([z[:, :2], z[:, 2:].relu()], 1).reshape(-1, 2, 3).transpose(1, 2).flatten(1), 2),
        (lambda z: z.square() * z, 4),
        (lambda z: torch.addcmul(z.square(), z, tensor2=z), 3),
        (lambda z: z**2 / z.sum(1, keepdim=True), 2),
    ],
)
def test_only_what_is_known_to_be_homogeneous_has_a_power(
    function: Callable[[Tensor], Tensor], depth: int | None
) -> None:
    layers = nn.Linear(5, 6, bias=False).double(), nn.Linear(6, 3, bias=False).double()
    model = Applied(*layers, function)
    inputs, state = draw(20, 5), {key: draw(*value.shape) for key, value in model.state_dict().items()}
    once, grown = (
        functional_call(model, {key: factor * value for key, value in state.items()}, (inputs,)) for factor in (1, 3)
    )
    last = connectivity(model, [state, state], inputs, against="pairs", exponential=True).iloc[-1]
    powers = [power for power in range(6) if torch.allclose(grown, 3.0**power * once)]
    assert powers == ([] if depth is None else [depth])
    assert last["depth"] == pytest.approx(np.nan if depth is None else depth, nan_ok=True)


class Applied(nn.Module):
    """Two layers with a function between them, and inputs that one without weights scales."""

    def __init__(self, first: nn.Module, last: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = first, last, function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.function(self.first((inputs - 0.3).tanh())))


class Attention(nn.Module):
    """Tokens that a layer and torch's attention take, and a last layer behind a normalisation or none."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.fc, self.attention = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8) if norm else nn.Identity(), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.fc(inputs)
        return self.head(self.norm(self.attention(tokens, tokens, tokens, need_weights=False)[0]))


@pytest.mark.parametrize("norm", [True, False])
def test_attention_has_no_power_until_the_next_normalisation(norm: bool) -> None:
    model = Attention(norm).double()
    states = [{key: draw(*value.shape) for key, value in model.state_dict().items()} for _ in range(2)]
    table = connectivity(model, states, draw(20, 4, 5), against="pairs", exponential=True).set_index("layer")
    assert table.loc["fc", "depth"] == 1
    assert np.isnan(table.loc["attention", "depth"])
    assert np.array_equal(table.loc["head", "depth"], 2 if norm else np.nan, equal_nan=True)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("t", [0.5, 0.25])
def test_the_controls_are_those_of_many_independent_units(t: float, depth: int) -> None:
    first, second = draw(2, 1_000_000)
    mixed, features = torch.lerp(first, second, t).relu(), (1 - t) ** depth * first.relu() + t**depth * second.relu()
    control = no_structure(t, depth)
    assert torch.cosine_similarity(mixed, features, dim=0).item() == pytest.approx(control.cosine, abs=1e-3)
    distance = (mixed - features).square().sum() / (mixed.norm() * features.norm())
    assert distance.item() == pytest.approx(control.distance, rel=0.01)


def test_the_measures_of_runs_and_checkpoints_are_the_functions() -> None:
    model, states, inputs = disjoint()
    targets = torch.arange(40) % 3
    settings = Settings(Data(inputs, targets), against=[(0, 1), (1, 0)], ts=(0.0, 0.3, 1.0))
    found = MEASURES["exponential"].table(Models(model, states), settings)
    table = connectivity(model, states, inputs, against=[(0, 1)], ts=(0.3,), exponential=True)
    for column in ("layer", "exponential", "exponential_shuffled", "reciprocal", "additivity"):
        assert found[column].equals(table[column])
    assert list(found["exponential_control"]) == [no_structure(0.3, depth).cosine for depth in (1, 2, 3)]
    assert set(found["additivity_control"]) == {no_structure(0.5).distance}  # as additivity is measured halfway
    found = MEASURES["calibrated"].table(Models(model, states), settings)
    assert found.equals(calibrated(model, states, inputs, targets, against=[(0, 1)], ts=(0.0, 0.3, 1.0)))
