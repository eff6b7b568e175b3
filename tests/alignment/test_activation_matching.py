"""Permutations found from what units respond to."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from fedsim.alignment.matching.activation_matching import Kind, match_activations
from fedsim.alignment.symmetries.permutations import permute, random_permutation
from fedsim.alignment.symmetries.spec import Derivation, derive
from fedsim.models.architectures import MODELS
from fedsim.models.params import Params, load_state_, state_of
from fedsim.seeds import rng

IMAGE = (2, 8, 8)


class CNN(nn.Module):
    """Two convolutions, a norm and a hidden layer, with functions between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1)
        self.norm = nn.GroupNorm(1, 6)
        self.fc1 = nn.Linear(6 * 4, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(max_pool2d(self.conv1(x), 2))
        x = relu(max_pool2d(self.norm(self.conv2(x)), 2))
        return self.fc2(relu(self.fc1(x.flatten(1))))


class Branches(nn.Module):
    """Units of two layers side by side, all of which one layer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(128, 4), nn.Linear(128, 5), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x.flatten(1)), self.b(x.flatten(1))], 1).tanh())


class Residual(nn.Module):
    """A stream that three layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(128, 6)
        self.up1, self.down1 = nn.Linear(6, 5), nn.Linear(5, 6)
        self.up2, self.down2 = nn.Linear(6, 4), nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1))
        x = x + self.down1(relu(self.up1(x)))
        x = x + self.down2(relu(self.up2(x)))
        return self.head(x)


class InPlace(nn.Module):
    """A stream that is changed in place, by a sum and by an activation, after a layer has taken it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(128, 6), nn.Linear(6, 3)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1).sub_(0.5))
        x += self.first(x)
        second = self.second(x)
        x.tanh_()
        return self.head(x) + self.head(second.relu())


def resnet(norm: str) -> nn.Module:
    model = MODELS["resnet18"](IMAGE, 3, norm=norm, width=2)
    for module in model.modules():
        if hasattr(module, "relu"):
            module.relu = nn.SiLU()  # after a ReLU, some units never respond, and cannot be told apart
    return model


def zoo(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: MODELS[name](IMAGE, 3, **settings)


def models(make: Callable[[], nn.Module], n: int = 40, tokens: int = 0) -> tuple[Derivation, list[Params], Tensor]:
    """Return the symmetries of a model, two random states with positive biases, and inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = [make().double() for _ in range(2)]
        states = [{key: value.clone() for key, value in state_of(model).items()} for model in made]
        for state in states:
            for value in state.values():
                if value.ndim == 1 and value.is_floating_point():
                    value.add_(2.0 * torch.rand_like(value))
        inputs = torch.randint(0, tokens, (n, 6)) if tokens else torch.randn(n, *IMAGE).double() + 0.5
    return derive(made[0], inputs[:2]), states, inputs


RECOVERED = {
    "mlp": zoo("mlp", hidden=(7, 6)),
    "cnn": CNN,
    "branches": Branches,
    "residual": Residual,
    **{f"resnet18-{norm}": partial(resnet, norm) for norm in ("none", "batch", "group", "layer")},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pearson", "uncentred"])
@pytest.mark.parametrize("name", RECOVERED)
def test_a_permuted_copy_is_recovered(name: str, kind: Kind) -> None:
    derivation, (state, _), inputs = models(RECOVERED[name])
    hidden = random_permutation(derivation.spec, rng(0))
    found = match_activations(derivation, state, permute(state, derivation.spec, hidden), inputs, kind=kind)
    assert found.keys() == hidden.keys()
    for order, indices in hidden.items():
        assert torch.equal(indices[found[order]], torch.arange(len(indices))), order


@pytest.mark.parametrize("kind", ["pearson", "uncentred"])
def test_units_of_a_transformer_are_recovered(kind: Kind) -> None:
    gpt = lambda: MODELS["gpt"]((6,), 9, depth=2, heads=2, width=6)  # noqa: E731
    derivation, (state, _), tokens = models(gpt, tokens=9)
    hidden = random_permutation(derivation.spec, rng(0))
    found = match_activations(derivation, state, permute(state, derivation.spec, hidden), tokens, kind=kind)
    assert len(found) >= 3
    for order, indices in hidden.items():
        assert torch.equal(indices[found[order]], torch.arange(len(indices))), order


def test_units_that_cannot_be_seen_stay_in_place() -> None:
    vit = zoo("vit", patch=4, depth=1, heads=2, width=4, mlp=5)
    derivation, (state, _), inputs = models(vit)
    hidden = random_permutation(derivation.spec, rng(0))
    found = match_activations(derivation, state, permute(state, derivation.spec, hidden), inputs)
    inside = {order for order in hidden if "self_attention" in order}
    assert inside
    assert hidden.keys() - inside
    for order, indices in found.items():
        expected = torch.arange(len(indices))
        assert torch.equal(indices if order in inside else hidden[order][indices], expected), order


def test_units_that_never_respond_match_nothing() -> None:
    derivation, states, inputs = models(zoo("mlp", hidden=(5,)))
    for state in states:
        state["fc1.bias"][:3] = -100.0
    for kind in ("pearson", "uncentred"):
        order = match_activations(derivation, *states, inputs, kind=kind)["fc1"]
        assert sorted(order.tolist()) == list(range(5))
        assert set(order[3:].tolist()) == {3, 4}
    with pytest.raises(ValueError, match="there are no inputs"):
        match_activations(derivation, *states, inputs[:0])
    with pytest.raises(ValueError, match=r"^kind = 'cosine' must be one of pearson, uncentred$"):
        match_activations(derivation, *states, inputs, kind="cosine")  # type: ignore[arg-type]
    part = {key: value for key, value in states[1].items() if key != "fc1.bias"}
    with pytest.raises(ValueError, match=r"^the other model lacks the entry 'fc1\.bias'"):
        match_activations(derivation, states[0], part, inputs)


def _taken(model: nn.Module, params: Params, inputs: Tensor, readers: dict[str, list[str]]) -> dict[str, list[Any]]:
    """Return what modules take, [rows, units] for each of them, by the layer whose units they take."""
    load_state_(model, params)
    seen: dict[str, Any] = {}
    for names in readers.values():
        for name in names:
            hook = lambda module, args, name=name: seen.setdefault(name, []).append(args[0].numpy().copy())  # noqa: E731
            model.get_submodule(name).register_forward_pre_hook(hook)
    with torch.no_grad():
        model(inputs.clone())
    rows: dict[str, list[Any]] = {}
    for layer, names in readers.items():
        units = len(params[f"{layer}.weight"])
        # Whatever comes after the channels, also in a flattened image, is a position.
        rows[layer] = [
            np.moveaxis(taken.reshape(len(inputs), units, -1), 1, -1).reshape(-1, units)
            for name in names
            for taken in seen[name]
        ]
    return rows


def _similar(a: Any, b: Any, kind: Kind) -> Any:
    if kind == "uncentred":
        return np.einsum("ni,nj->ij", a, b) / len(a)
    covariance = np.cov(a.T, b.T, ddof=0)[: a.shape[1], a.shape[1] :]
    return covariance / (np.outer(a.std(0), b.std(0)) + 1e-4)


READERS = {
    CNN: {"conv1": ["conv2"], "conv2": ["fc1"], "fc1": ["fc2"]},
    Residual: {"embed": ["up1", "up2", "head"], "up1": ["down1"], "up2": ["down2"]},
    InPlace: {"embed": ["first", "second", "head"]},
}


@pytest.mark.parametrize("kind", ["pearson", "uncentred"])
@pytest.mark.parametrize("make", READERS)
def test_it_is_the_best_assignment_of_what_the_next_layers_take(make: Callable[[], nn.Module], kind: Kind) -> None:
    derivation, states, inputs = models(make, n=300)
    before = inputs.clone()
    with torch.inference_mode(make is InPlace):
        found = match_activations(derivation, *states, inputs, kind=kind)
    assert torch.equal(inputs, before)
    first, second = (_taken(make().double(), state, inputs, READERS[make]) for state in states)
    assert found.keys() == first.keys()
    for layer, order in found.items():
        gain = sum(_similar(a, b, kind) for a, b in zip(first[layer], second[layer], strict=True))
        assert order.tolist() == linear_sum_assignment(gain, maximize=True)[1].tolist(), layer
        assert order.tolist() != list(range(len(order)))


@pytest.mark.parametrize("kind", ["pearson", "uncentred"])
def test_the_order_of_the_inputs_does_not_matter(kind: Kind) -> None:
    derivation, states, inputs = models(CNN, n=300)
    found = match_activations(derivation, *states, inputs, kind=kind)
    shuffled = match_activations(derivation, *states, inputs[torch.from_numpy(rng(1).permutation(300))], kind=kind)
    assert all(torch.equal(order, shuffled[name]) for name, order in found.items())
