"""Permutations found by gradients, with the straight-through estimator."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.alignment.matching.straight_through import match_straight_through
from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.symmetries.permutations import Permutation, Spec, permute, random_permutation
from fedsim.alignment.symmetries.spec import permutation_spec
from fedsim.models.params import Params, lerp, load_state_, state_of
from fedsim.seeds import rng


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3)
    )


SHAPES = {mlp: (4,), small: (4,), cnn: (1, 4, 4)}


def models(
    make: Callable[[], nn.Module], n: int = 60, seed: int = 1
) -> tuple[nn.Module, Spec, list[Params], Tensor, Tensor]:
    """Return a model, its symmetries, two states in float64 that are trained a little, and their examples."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        centres = 2.0 * torch.randn(6, *SHAPES[make]).double()
        targets = torch.arange(n) % 3
        inputs = centres[torch.arange(n) % 6] + torch.randn(n, *SHAPES[make]).double()
        made = [make().double() for _ in range(2)]
    for model in made:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        for _ in range(25):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        model.eval()
    states = [{key: value.clone() for key, value in state_of(model).items()} for model in made]
    return made[0], permutation_spec(made[0], inputs[:2]), states, inputs, targets


def middle_loss(model: nn.Module, params: Params, other: Params, inputs: Tensor, targets: Tensor) -> float:
    load_state_(model, lerp(params, other, 0.5))
    with torch.no_grad():
        return float(cross_entropy(model(inputs), targets))


def equal(some: Permutation, other: Permutation) -> bool:
    return some.keys() == other.keys() and all(torch.equal(order, other[name]) for name, order in some.items())


@pytest.mark.parametrize("make", [mlp, cnn])
def test_a_permuted_copy_is_recovered(make: Callable[[], nn.Module]) -> None:
    model, spec, (state, _), inputs, targets = models(make)
    copy = permute(state, spec, random_permutation(spec, rng(0)))
    found = match_straight_through(model, spec, state, copy, inputs, targets, rng=rng(1), epochs=2, batch_size=20)
    again = permute(copy, spec, found)
    assert all(torch.equal(again[key], value) for key, value in state.items())


def test_the_middle_has_a_lower_loss_than_after_weight_matching() -> None:
    model, spec, (state, other), inputs, targets = models(mlp)
    matched = match_weights(spec, state, other, rng=rng(1)).permutation
    found = match_straight_through(model, spec, state, other, inputs, targets, rng=rng(1), lr=0.3, batch_size=30)
    before, after = (
        middle_loss(model, state, permute(other, spec, permutation), inputs, targets)
        for permutation in (matched, found)
    )
    assert after < before


@pytest.mark.parametrize("seed", range(3))
def test_the_middle_never_has_a_higher_loss_however_large_the_steps(seed: int) -> None:
    model, spec, (state, other), inputs, targets = models(mlp)
    matched = match_weights(spec, state, other, rng=rng(seed)).permutation
    found = match_straight_through(
        model, spec, state, other, inputs, targets, rng=rng(seed), lr=30.0, epochs=2, batch_size=30
    )
    before, after = (
        middle_loss(model, state, permute(other, spec, permutation), inputs, targets)
        for permutation in (matched, found)
    )
    assert after <= before + 1e-12


def _brute_force(states: list[Params], inputs: Tensor, targets: Tensor, epochs: int, lr: float) -> list[int]:
    """Transcribe the search for one hidden layer and a batch of all examples; projections try all permutations."""

    def permuted(order: tuple[int, ...]) -> list[Tensor]:
        weight, bias, head, last = states[1].values()
        return [weight[list(order)], bias[list(order)], head[:, list(order)], last]

    def loss(weight: Tensor, bias: Tensor, head: Tensor, last: Tensor) -> Tensor:
        return cross_entropy((inputs @ weight.T + bias).relu() @ head.T + last, targets)

    reference = list(states[0].values())
    latent, velocity, seen = list(reference), [torch.zeros(())] * 4, {}
    for _ in range(epochs + 1):
        distances = {
            order: sum(float((a - b).square().sum()) for a, b in zip(latent, permuted(order), strict=True))
            for order in itertools.permutations(range(5))
        }
        order = min(distances, key=distances.__getitem__)
        middle = [((a + b) / 2).requires_grad_() for a, b in zip(reference, permuted(order), strict=True)]
        value = loss(*middle)
        seen.setdefault(order, float(value.detach()))
        for k, gradient in enumerate(torch.autograd.grad(value, middle)):
            velocity[k] = 0.9 * velocity[k] + 0.5 * gradient
            latent[k] = latent[k] - lr * velocity[k]
    return list(min(seen, key=seen.__getitem__))


@pytest.mark.parametrize(("seed", "lr"), [(50, 1.0), (50, 2.0), (53, 0.5), (53, 1.0)])
def test_it_is_the_search_of_the_paper(seed: int, lr: float) -> None:
    model, spec, states, inputs, targets = models(small, seed=seed)
    found = match_straight_through(
        model, spec, *states, inputs, targets, rng=rng(0), lr=lr, epochs=5, batch_size=len(inputs)
    )
    (order,) = found.values()
    assert order.tolist() == _brute_force(states, inputs, targets, 5, lr)


def test_it_is_deterministic_and_changes_no_argument() -> None:
    model, spec, states, inputs, targets = models(cnn)
    before = [{key: value.clone() for key, value in params.items()} for params in (*states, state_of(model))]
    first, second = (
        match_straight_through(model, spec, *states, inputs, targets, rng=rng(3), lr=0.3, epochs=3, batch_size=7)
        for _ in range(2)
    )
    assert equal(first, second)
    for params, values in zip((*states, state_of(model)), before, strict=True):
        assert all(torch.equal(value, values[key]) for key, value in params.items())
    assert not any(module.training for module in model.modules())


def test_batch_normalisation_uses_the_statistics_of_the_batch() -> None:
    model, spec, states, inputs, targets = models(cnn, seed=6)
    found = match_straight_through(model, spec, *states, inputs, targets, rng=rng(3), lr=3.0, epochs=3)
    assert not equal(found, match_weights(spec, *states, rng=rng(3)).permutation)
    for state in states:
        state["1.running_mean"] = torch.full((4,), 1e3, dtype=torch.float64)
    assert equal(found, match_straight_through(model, spec, *states, inputs, targets, rng=rng(3), lr=3.0, epochs=3))


def test_a_search_that_diverges_is_an_error() -> None:
    model, spec, states, inputs, targets = models(mlp)
    with pytest.raises(ValueError, match="not finite"):
        match_straight_through(model, spec, *states, inputs, targets, rng=np.random.default_rng(0), lr=float("inf"))


def test_a_search_without_training_is_an_error() -> None:
    model, spec, states, inputs, targets = models(small)
    for name in ("epochs", "batch_size"):
        with pytest.raises(ValueError, match=f"^{name} = 0 must be at least 1; "):
            match_straight_through(model, spec, *states, inputs, targets, rng=rng(0), **{name: 0})
    with pytest.raises(ValueError, match=r"^examples = 0 must be at least 1; "):
        match_straight_through(model, spec, *states, inputs[:0], targets[:0], rng=rng(0))
    part = {key: value for key, value in states[0].items() if key != "0.bias"}
    with pytest.raises(ValueError, match=r"^the reference lacks the entry '0\.bias'"):
        match_straight_through(model, spec, part, states[1], inputs, targets, rng=rng(0))
