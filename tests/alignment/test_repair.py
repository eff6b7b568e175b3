"""Repaired models have the moments of their members; biases are scaled to merged layers."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from fedsim.alignment.repair.biases import scale_biases
from fedsim.alignment.repair.repairing import Kind, repair, reset_statistics
from fedsim.alignment.repair.variance import correct_variances
from fedsim.models.architectures import MODELS
from fedsim.models.averaging import weighted_mean
from fedsim.models.params import Params, load_state_, state_of

WEIGHTS = (1.0, 2.0, 5.0)
SHARES = (0.125, 0.25, 0.625)
IMAGE = (2, 8, 8)


class Fan(nn.Module):
    """Results with several users, a depthwise convolution, norms of groups, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(size, 4, 3, padding=1) for size in (2, 4, 4))
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm, self.other_norm = nn.GroupNorm(2, 4), nn.GroupNorm(2, 4)
        self.twice = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        second = self.second(x)
        x = relu(self.depthwise(relu(x))) + self.norm(second) + relu(second)
        x = self.other_norm(self.third(self.twice(self.twice(x))))
        return self.fc(relu(x).mean((2, 3)))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(6, 7),
        nn.ReLU(),
        nn.Linear(7, 3),
    )


def zoo(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: MODELS[name](IMAGE, 3, **settings)


def models(make: Callable[[], nn.Module], count: int = 3, inputs: int = 20) -> tuple[nn.Module, list[Params], Tensor]:
    """Return a model, states of random ones with different norms and running statistics, and inputs; float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = [make().double().eval() for _ in range(count)]
        states = [{key: value.clone() for key, value in state_of(model).items()} for model in made]
        for state in states:
            for value in state.values():
                if value.ndim == 1 and value.is_floating_point():
                    value.add_(torch.rand_like(value))
        return made[0], states, torch.randn(inputs, *IMAGE).double() + 0.5


def average(states: list[Params]) -> Params:
    return states[0] | weighted_mean(states, WEIGHTS[: len(states)])


def observed(model: nn.Module, params: Params, names: list[str], inputs: Tensor) -> dict[str, Tensor]:
    """Return mean and standard deviation of each channel, as [2, channels], of the outputs of modules."""
    net, found = copy.deepcopy(model), {}
    load_state_(net, params)

    def hook(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: Any, output: Tensor) -> None:
            rows = output.detach().numpy()
            rows = np.moveaxis(rows, 1 if rows.ndim == 4 else -1, -1).reshape(
                -1, rows.shape[1 if rows.ndim == 4 else -1]
            )
            found[name] = torch.from_numpy(np.stack([rows.mean(0), rows.std(0)]))

        return see

    for name in names:
        net.get_submodule(name).register_forward_hook(hook(name))
    net(inputs)
    return found


def outputs(model: nn.Module, params: Params, inputs: Tensor) -> Tensor:
    net = copy.deepcopy(model).eval()
    load_state_(net, params)
    with torch.no_grad():
        return net(inputs)


def changed(params: Params, before: Params) -> set[str]:
    return {key for key, value in params.items() if not torch.equal(value, before[key])}


def sites(model: nn.Module) -> list[str]:
    """Return the modules that are corrected: norms, and linear layers and convolutions that no norm follows."""
    modules = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    norms = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
    found = []
    for number, (name, module) in enumerate(modules[:-1]):
        is_sum = isinstance(module, nn.Conv2d | nn.Linear)
        if isinstance(module, norms) or (is_sum and not isinstance(modules[number + 1][1], norms)):
            found.append(name)
    return ["first", "second", "depthwise", "norm", "other_norm"] if isinstance(model, Fan) else found


def goal(model: nn.Module, states: list[Params], names: list[str], inputs: Tensor) -> dict[str, Tensor]:
    seen = [observed(model, state, names, inputs) for state in states]
    return {name: sum(share * each[name] for share, each in zip(SHARES, seen, strict=True)) for name in names}


CORRECTED = {
    "mlp": zoo("mlp", hidden=(7, 6)),
    "cnn": cnn,
    "batch": zoo("resnet18", norm="batch", width=2),
    "frozen": zoo("resnet18", norm="frozen-batch", width=2),
    "group": zoo("resnet18", norm="group", width=2),
    "fan": Fan,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRECTED)
def test_each_channel_has_the_weighted_mean_and_deviation_of_the_members(name: str) -> None:
    model, states, inputs = models(CORRECTED[name], inputs=300 if name == "mlp" else 20)
    repaired = repair(model, average(states), states, inputs, weights=WEIGHTS)
    expected = goal(model, states, sites(model), inputs)
    got = observed(model, repaired, sites(model), inputs)
    assert got.keys() == expected.keys()
    for site, moments in expected.items():
        torch.testing.assert_close(got[site], moments, rtol=1e-9, atol=1e-9, msg=site)


def test_without_biases_the_deviation_alone_is_that_of_the_members() -> None:
    model, states, inputs = models(zoo("resnet18", norm="none", width=2))
    merged = average(states)
    repaired = repair(model, merged, states, inputs, weights=WEIGHTS)
    expected = goal(model, states, sites(model), inputs)
    got, before = observed(model, repaired, sites(model), inputs), observed(model, merged, ["conv1"], inputs)
    for site, moments in expected.items():
        torch.testing.assert_close(got[site][1], moments[1], rtol=1e-9, atol=1e-9, msg=site)
    torch.testing.assert_close(got["conv1"][0] / got["conv1"][1], before["conv1"][0] / before["conv1"][1])
    unshifted = repair(model, merged, states, inputs, weights=WEIGHTS, kind="reshift")
    assert all(torch.equal(value, merged[key]) for key, value in unshifted.items())


@pytest.mark.parametrize(("kind", "row"), [("reshift", 0), ("rescale", 1)])
@pytest.mark.parametrize("name", ["cnn", "fan"])
def test_one_of_the_two_moments_can_be_corrected_alone(name: str, kind: Kind, row: int) -> None:
    model, states, inputs = models(CORRECTED[name])
    merged = average(states)
    repaired = repair(model, merged, states, inputs, weights=WEIGHTS, kind=kind)
    expected = goal(model, states, sites(model), inputs)
    got, before = (observed(model, params, sites(model), inputs) for params in (repaired, merged))
    for site, moments in expected.items():
        torch.testing.assert_close(got[site][row], moments[row], rtol=1e-9, atol=1e-9, msg=site)
    first = sites(model)[0]
    torch.testing.assert_close(got[first][1 - row], before[first][1 - row])
    last = sites(model)[-1]
    assert not torch.allclose(got[last][1 - row], expected[last][1 - row])


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRECTED)
def test_nothing_changes_where_all_members_are_the_merged_model(name: str) -> None:
    model, (state, *_), inputs = models(CORRECTED[name])
    repaired = repair(model, state, [state, state], inputs, weights=(1.0, 3.0))
    torch.testing.assert_close(outputs(model, repaired, inputs), outputs(model, state, inputs), rtol=0, atol=1e-10)
    if name != "batch":  # there, the statistics are those of the inputs afterwards
        for key, value in state.items():
            torch.testing.assert_close(repaired[key], value, rtol=1e-10, atol=1e-10)


def test_batch_normalisation_computes_alike_in_training_after_repair() -> None:
    model, states, inputs = models(zoo("resnet18", norm="batch", width=2))
    repaired = repair(model, average(states), states, inputs, weights=WEIGHTS)
    in_training = copy.deepcopy(model).train()
    load_state_(in_training, repaired)
    # In evaluation, the variance is divided by one less than the number of values: 20 where there is one position.
    torch.testing.assert_close(in_training(inputs), outputs(model, repaired, inputs), rtol=0, atol=0.05)


def test_the_classifier_stays_as_it_is_and_so_do_the_arguments() -> None:
    model, states, inputs = models(cnn)
    merged = average(states)
    copies = [{key: value.clone() for key, value in params.items()} for params in (merged, *states, state_of(model))]
    repaired = repair(model, merged, states, inputs, weights=WEIGHTS)
    assert changed(repaired, merged) == {f"{layer}.{entry}" for layer in (0, 3, 6) for entry in ("weight", "bias")}
    for params, before in zip((merged, *states, state_of(model)), copies, strict=True):
        assert all(torch.equal(value, before[key]) for key, value in params.items())


def test_weights_that_are_used_twice_stay_and_those_before_a_norm() -> None:
    model, states, inputs = models(Fan)
    merged = average(states)
    repaired = repair(model, merged, states, inputs, weights=WEIGHTS)
    assert changed(repaired, merged) == {f"{name}.{entry}" for name in sites(model) for entry in ("weight", "bias")}


def test_a_constant_channel_is_only_shifted() -> None:
    model, states, inputs = models(zoo("mlp", hidden=(5,)), count=2)
    merged = average(states)
    merged["fc1.weight"][:2] = 0.0
    states[0]["fc1.weight"][0], states[1]["fc1.weight"][0] = 0.0, 0.0
    repaired = repair(model, merged, states, inputs)
    assert torch.equal(repaired["fc1.weight"][:2], torch.zeros(2, 128))
    expected = torch.stack([observed(model, state, ["fc1"], inputs)["fc1"][0] for state in states]).mean(0)
    torch.testing.assert_close(repaired["fc1.bias"][:2], expected[:2])
    got = observed(model, repaired, ["fc1"], inputs)["fc1"][0]
    torch.testing.assert_close(got, expected)


def test_in_single_precision_rounding_does_not_make_a_constant_channel_vary() -> None:
    model, states, inputs = models(zoo("mlp", hidden=(5,)), count=2)
    model, inputs = model.float(), inputs.float()
    states = [{key: value.float() for key, value in state.items()} for state in states]
    merged = average(states)
    merged["fc1.weight"][0], merged["fc1.bias"][0] = 1e-9, 1.0
    repaired = repair(model, merged, states, inputs)
    assert torch.equal(repaired["fc1.weight"][0], merged["fc1.weight"][0])
    assert {value.dtype for value in repaired.values()} == {torch.float32}


def test_tied_weights_attention_and_recurrent_layers_stay_as_they_are() -> None:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (30, 6)))
    gpt = lambda: MODELS["gpt"]((6,), 9, depth=1, heads=2, width=4)  # noqa: E731
    model, states, _ = models(gpt)
    repaired = repair(model, average(states), states, tokens, weights=WEIGHTS)
    names = [name for name in sites(model) if name != "drop"]
    expected, got = goal(model, states, names, tokens), observed(model, repaired, names, tokens)
    assert {"h.0.ln_1", "h.0.attn.c_attn", "h.0.mlp.c_fc", "ln_f"} <= set(names)
    for name in names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-9)
    for name in ("wte", "wpe"):
        assert torch.equal(repaired[f"{name}.weight"], average(states)[f"{name}.weight"])

    lstm = lambda: MODELS["char-lstm"]((6,), 9, hidden=4, depth=1)  # noqa: E731
    model, states, _ = models(lstm)
    merged = average(states)
    repaired = repair(model, merged, states, tokens, weights=WEIGHTS)
    assert all(torch.equal(value, merged[key]) for key, value in repaired.items())

    model, states, inputs = models(zoo("vit", patch=4, depth=1, heads=2, width=4, mlp=5))
    merged = average(states)
    repaired = repair(model, merged, states, inputs, weights=WEIGHTS)
    assert not any("self_attention" in key or "head" in key for key in changed(repaired, merged))
    mlp = "encoder.layers.encoder_layer_0.mlp.0"
    assert f"{mlp}.bias" in changed(repaired, merged)
    got = observed(model, repaired, [mlp], inputs)
    torch.testing.assert_close(got, goal(model, states, [mlp], inputs), rtol=1e-9, atol=1e-9)


def with_norm(*frozen: str) -> nn.Module:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(128, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    generator = torch.Generator().manual_seed(3)
    for name, value in net.named_parameters():
        if name.startswith(frozen):
            value.requires_grad_(False).copy_(torch.rand(value.shape, generator=generator) - 0.3)
    return net


@pytest.mark.parametrize("kind", ["repair", "rescale", "reshift"])
@pytest.mark.parametrize(
    ("frozen", "expected"),
    [
        (("1",), ["2", "4"]),
        (("2",), ["1", "4"]),
        (("4",), ["2"]),
        (("6",), ["2", "4"]),
        (("2.weight",), ["4"]),
        (("1.weight", "4.weight"), ["2"]),
    ],
)
def test_frozen_layers_stay_and_all_others_are_corrected(frozen: tuple[str], expected: list[str], kind: Kind) -> None:
    model, states, inputs = models(lambda: with_norm(*frozen), inputs=300)
    merged = average(states)
    repaired = repair(model, merged, states, inputs, weights=WEIGHTS, kind=kind)
    assert repaired.keys() == state_of(model).keys()
    goals, got = goal(model, states, expected, inputs), observed(model, repaired, expected, inputs)
    for site, (mean, deviation) in goals.items():
        if kind != "rescale":
            torch.testing.assert_close(got[site][0], mean, rtol=1e-9, atol=1e-9)
        if kind != "reshift":
            torch.testing.assert_close(got[site][1], deviation, rtol=1e-9, atol=1e-9)
    stays = {key for key in merged if key.startswith("6.") or (key == "4.bias" and "4" not in expected)}
    assert not changed(repaired, merged) & stays


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) * (2.0 if bool(x.sum() > 0) else 1.0)


def test_what_cannot_be_repaired_is_an_error_of_one_line() -> None:
    model, states, inputs = models(Branching)
    with pytest.raises(
        ValueError, match=r"^Branching cannot .* by layer: it decides by the values [^\n]*; omit the correction$"
    ):
        repair(model, average(states), states, inputs)
    model, states, inputs = models(cnn)
    merged = average(states)
    with pytest.raises(ValueError, match="statistics need at least 2"):
        repair(model, merged, states, inputs[:1])
    with pytest.raises(ValueError, match=r"^kind = 'all' must be one of repair, rescale, reshift$"):
        repair(model, merged, states, inputs, kind="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^there are no inputs; "):
        scale_biases(model, merged, states, inputs[:0])
    with pytest.raises(ValueError, match="for 3 members; give each one positive"):
        repair(model, merged, states, inputs, weights=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"state 1 lacks the entry .0\.bias."):
        repair(model, merged, [states[0], {k: v for k, v in states[1].items() if k != "0.bias"}], inputs)


def test_reset_statistics_are_the_mean_over_batches_of_125() -> None:
    make = lambda: nn.Sequential(cnn()[0], nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3))  # noqa: E731
    model, states, inputs = models(make, inputs=150)
    own = copy.deepcopy(state_of(model))
    reset = reset_statistics(model, states[1], inputs)
    assert not changed(state_of(model), own)
    net = copy.deepcopy(model)
    load_state_(net, states[1])
    values = [net[0](batch).detach().movedim(1, -1).flatten(0, -2) for batch in (inputs[:125], inputs[125:])]
    torch.testing.assert_close(reset["1.running_mean"], torch.stack([each.mean(0) for each in values]).mean(0))
    torch.testing.assert_close(reset["1.running_var"], torch.stack([each.var(0) for each in values]).mean(0))
    assert all(torch.equal(reset[key], states[1][key]) for key, _ in model.named_parameters())
    assert not torch.equal(states[1]["1.running_mean"], reset["1.running_mean"])
    with pytest.raises(ValueError, match="statistics need at least 2"):
        reset_statistics(model, states[1], inputs[:1])


@pytest.mark.parametrize("make", [cnn, zoo("resnet18", norm="frozen-batch", width=2)])
def test_there_is_nothing_to_reset_where_statistics_are_frozen_or_none(make: Callable[[], nn.Module]) -> None:
    model, states, inputs = models(make)
    reset = reset_statistics(model, states[1], inputs)
    assert reset.keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in reset.items())


def disjoint(state: Params, first: bool, units: int) -> Params:
    """Return a chain whose hidden layers have only their first, or only their other units; the rest is 0."""
    keep, keys, out = slice(0, units) if first else slice(units, None), list(state), {}
    for number, key in enumerate(keys):
        out[key], value = torch.zeros_like(state[key]), state[key]
        rows = slice(None) if number >= len(keys) - 2 else keep
        columns = slice(None) if number < 2 else keep
        where = rows if value.ndim == 1 else (rows, columns)
        out[key][where] = value[where]
    return out


class Normalised(nn.Sequential):
    """A chain whose inputs are normalised by buffers."""

    def __init__(self) -> None:
        super().__init__(*cnn())
        self.register_buffer("mean", torch.tensor([0.3, -0.2])[:, None, None])
        self.register_buffer("std", torch.tensor([1.5, 0.7])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) / self.std)


class Functional(nn.Module):
    """A chain of which a function takes one weight, scaled by a number of each unit."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.weight = nn.Linear(128, 5), nn.Parameter(torch.randn(6, 5))
        self.bias, self.scale = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6).abs())
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.first(x.flatten(1)))
        x = relu(self.function(x, self.weight, self.bias)) * self.scale
        return self.last(relu(x))


@pytest.mark.parametrize(
    "function",
    [
        nn.functional.linear,
        lambda x, weight, bias: nn.functional.linear(bias=bias, weight=weight, input=x),
        lambda x, weight, bias: torch.addmm(bias, x, weight.t()),
        lambda x, weight, bias: bias.addmm(mat2=weight.t(), mat1=x),
        lambda x, weight, bias: torch.baddbmm(bias, x[:, None], weight.t().expand(x.shape[0], 5, 6))[:, 0],
        lambda x, weight, bias: torch.tensordot(x, weight, dims=([1], [1])) + bias,
        lambda x, weight, bias: torch.inner(x, weight) + bias,
    ],
)
def test_weights_of_functions_count_and_sums_with_them_do_not(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    model, states, inputs = models(lambda: Functional(function), count=2)
    members = []
    for state, keep in zip(states, (slice(0, 2), slice(2, None)), strict=True):
        member = {key: torch.zeros_like(value) for key, value in state.items()}
        for key in ("first.weight", "first.bias", "scale"):
            member[key][keep] = state[key][keep]
        member["weight"][keep, keep] = state["weight"][keep, keep]
        member["last.weight"][:, keep], member["last.bias"] = state["last.weight"][:, keep], state["last.bias"]
        members.append(member)
    merged = members[0] | weighted_mean(members, [0.3, 0.7])
    scaled = scale_biases(model, merged, members, inputs, weights=[3.0, 7.0])
    one, other = (outputs(model, member, inputs) for member in members)
    torch.testing.assert_close(outputs(model, scaled, inputs), 0.3**4 * one + 0.7**4 * other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [zoo("mlp", hidden=(5, 6, 4)), cnn, Normalised])
def test_with_scaled_biases_disjoint_models_are_added_with_powers_of_their_shares(
    make: Callable[[], nn.Module],
) -> None:
    model, states, inputs = models(make, count=2)
    buffers = {key: value for key, value in states[0].items() if key in ("mean", "std")}
    chains = [{key: value for key, value in state.items() if key not in buffers} for state in states]
    members = [buffers | disjoint(chains[0], True, 2), buffers | disjoint(chains[1], False, 2)]
    merged = members[0] | weighted_mean(members, [0.3, 0.7])
    scaled = scale_biases(model, merged, members, inputs[:1], weights=[3.0, 7.0])
    one, other = (outputs(model, member, inputs) for member in members)
    torch.testing.assert_close(outputs(model, scaled, inputs), 0.3**4 * one + 0.7**4 * other, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(outputs(model, merged, inputs), 0.3**4 * one + 0.7**4 * other)


def test_what_is_added_to_a_product_counts_where_it_is_deeper() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(128, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.scale, self.fc = nn.Parameter(torch.randn(4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x.flatten(1))
            return self.fc(torch.addcmul(self.c(relu(self.b(x))), x, self.scale))

    model, states, inputs = models(Added)
    scaled = scale_biases(model, average(states), states, inputs, weights=WEIGHTS)
    expected = sum(share**4 * state["fc.bias"] for share, state in zip(SHARES, states, strict=True))
    torch.testing.assert_close(scaled["fc.bias"], expected)


def test_depth_counts_along_the_longest_way_since_the_last_normalisation() -> None:
    class Ways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(2, 2, 1) for _ in range(4))
            self.norm = nn.GroupNorm(2, 2)
            self.fc = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = x + self.c(relu(self.b(x)))
            return self.fc(self.d(self.norm(x)).mean((2, 3)) + x.mean((2, 3)))

    model, states, inputs = models(Ways)
    merged = average(states)
    merged["norm.bias"] += 1.0
    scaled = scale_biases(model, merged, states, inputs, weights=WEIGHTS)
    for name, depth in (("a", 1), ("b", 2), ("c", 3), ("d", 2), ("fc", 4)):
        expected = sum(share**depth * state[f"{name}.bias"] for share, state in zip(SHARES, states, strict=True))
        torch.testing.assert_close(scaled[f"{name}.bias"], expected)
    assert torch.equal(scaled["norm.bias"], merged["norm.bias"])
    assert all(torch.equal(scaled[key], merged[key]) for key in merged if not key.endswith("bias"))


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(5, affine=False), nn.LayerNorm(5, elementwise_affine=False), nn.GroupNorm(5, 5, affine=False)],
)
def test_depth_restarts_at_a_normalisation_without_weights(norm: nn.Module) -> None:
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 5), norm, nn.ReLU(), nn.Linear(5, 3))  # noqa: E731
    model, states, inputs = models(make)
    scaled = scale_biases(model, average(states), states, inputs, weights=WEIGHTS)
    for key in ("1.bias", "4.bias"):
        expected = sum(share * state[key] for share, state in zip(SHARES, states, strict=True))
        torch.testing.assert_close(scaled[key], expected)


def test_averages_of_independent_weights_get_their_variance_back_about_the_same_means() -> None:
    model, states, _ = models(cnn)
    generator = torch.Generator().manual_seed(0)
    draws = [
        {key: 2.0 + torch.randn(value.shape, generator=generator).double() for key, value in states[0].items()}
        for _ in WEIGHTS
    ]
    merged = average(draws)
    corrected = correct_variances(model, merged, draws, weights=WEIGHTS, epsilon=0.0)
    independent = sum(share**2 for share in SHARES)  # 1 / N of equal weights
    for key, value in merged.items():
        goal = sum(share * draw[key].var(correction=0) for share, draw in zip(SHARES, draws, strict=True))
        assert value.numel() < 200 or value.var(correction=0) / goal == pytest.approx(independent, rel=0.2)
        torch.testing.assert_close(corrected[key].var(correction=0), goal)
        torch.testing.assert_close(corrected[key].mean(), value.mean())
        slope = (corrected[key] - corrected[key].mean()) / (value - value.mean())
        torch.testing.assert_close(slope, slope.flatten()[0].expand_as(slope))


def test_the_variance_of_equal_models_of_constants_and_of_statistics_stays() -> None:
    model, states, _ = models(
        lambda: nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(180, 3))
    )
    corrected, merged = correct_variances(model, states[0], [states[0]] * 3, weights=WEIGHTS), average(states)
    assert all(torch.equal(corrected[key], value) for key, value in states[0].items())
    corrected, parameters = correct_variances(model, merged, states, weights=WEIGHTS), dict(model.named_parameters())
    assert {key for key, value in merged.items() if not torch.equal(corrected[key], value)} == parameters.keys()
    flat = {key: torch.ones_like(value) if key.endswith("bias") else value for key, value in states[0].items()}
    corrected = correct_variances(model, flat, states, epsilon=0.0)  # what has no direction is not scaled
    assert torch.equal(corrected["3.bias"], flat["3.bias"])


def test_a_negative_epsilon_is_refused() -> None:
    model, states, _ = models(cnn)
    with pytest.raises(ValueError, match=r"epsilon = -1\.0 must be at least 0"):
        correct_variances(model, states[0], states, epsilon=-1.0)
