"""Relaxed permutations with implicit gradients: against finite differences, unrolled iterations and assignments."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor, nn

from fedsim.alignment.matching.implicit_sinkhorn import Goal, match_sinkhorn, move_softly
from fedsim.alignment.matching.relaxations import closest
from fedsim.alignment.matching.sinkhorn import sinkhorn
from fedsim.alignment.matching.straight_through import match_straight_through
from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.repair.repairing import reset_statistics
from fedsim.alignment.symmetries.checks import check_spec
from fedsim.alignment.symmetries.permutations import (
    Permutation,
    Spec,
    Symmetry,
    compose,
    identity,
    invert,
    permute,
    random_permutation,
)
from fedsim.alignment.symmetries.spec import permutation_spec
from fedsim.models.params import Params, state_of
from fedsim.seeds import rng
from tests.alignment.test_straight_through import cnn, equal, middle_loss, mlp, models


def latent(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rows_and_columns_sum_to_one_and_logarithms_differ_from_the_latent_by_a_row_and_a_column() -> None:
    matrix = sinkhorn(3 * latent(5, 7, 7), 0.7, iterations=1000, tolerance=1e-10)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(5, 7).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(matrix.sum(-2), torch.ones(5, 7).double(), rtol=0, atol=1e-12)
    added = matrix.log() - 3 * latent(5, 7, 7) / 0.7
    centred = added - added[:, :1] - added[:, :, :1] + added[:, :1, :1]
    torch.testing.assert_close(centred, torch.zeros(5, 7, 7).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4, 4), (1, 1)])
def test_the_gradient_is_that_of_finite_differences(shape: tuple[int, ...]) -> None:
    weights = latent(*shape, seed=1)

    def value(entries: Tensor) -> Tensor:
        return (sinkhorn(entries, 0.5, iterations=10_000, tolerance=1e-14).square() * weights).sum()

    entries = latent(*shape).requires_grad_()
    (found,) = torch.autograd.grad(value(entries), entries)
    expected, step = torch.zeros(entries.numel(), dtype=torch.float64), 1e-5
    for place in range(entries.numel()):
        change = torch.zeros(entries.numel(), dtype=torch.float64)
        change[place] = step
        moved = [value((entries + sign * change.view(shape)).detach()) for sign in (1, -1)]
        expected[place] = (moved[0] - moved[1]) / (2 * step)
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-6, atol=1e-9)


def test_the_gradient_is_that_of_unrolled_iterations() -> None:
    entries, weights = latent(6, 6).requires_grad_(), latent(6, 6, seed=1)
    log = entries / 0.3
    for _ in range(3000):
        log = log - log.logsumexp(-1, keepdim=True)
        log = log - log.logsumexp(-2, keepdim=True)
    (expected,) = torch.autograd.grad((log.exp() * weights).sum(), entries)
    (found,) = torch.autograd.grad((sinkhorn(entries, 0.3, iterations=3000, tolerance=1e-14) * weights).sum(), entries)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 4.0, 20.0])
def test_the_gradient_in_float32_is_that_in_float64(scale: float) -> None:
    found = []
    for dtype in (torch.float64, torch.float32):
        entries = (scale * torch.eye(4) + 0.1 * latent(4, 4)).to(dtype).requires_grad_()
        (sinkhorn(entries, 0.1).square() * latent(4, 4, seed=1).to(dtype)).sum().backward()
        assert entries.grad is not None
        assert entries.grad.dtype == dtype
        found.append(entries.grad.double())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_it_approaches_the_assignment_as_the_temperature_falls(seed: int) -> None:
    entries = latent(6, 6, seed=seed)
    _, columns = scipy.optimize.linear_sum_assignment(entries.numpy(), maximize=True)
    expected = torch.eye(6, dtype=torch.float64)[torch.from_numpy(columns)]
    planted = entries + 6 * expected  # whose limit is not slow
    far = [float((sinkhorn(planted, temperature) - expected).abs().max()) for temperature in (3.0, 1.0, 0.3, 0.1)]
    assert far == sorted(far, reverse=True)
    assert far[0] > 0.1 > 1e-6 > far[-1]
    symmetry = Symmetry(6, {"units": 1})
    found = closest(Spec((symmetry,), {}), {"units": sinkhorn(entries, 0.05, iterations=2000)})
    assert found["units"].tolist() == columns.tolist()
    entries.requires_grad_()
    sinkhorn(entries, 1e-3, iterations=100).square().sum().backward()
    assert entries.grad is not None
    assert entries.grad.isfinite().all()


class Attention(nn.Module):
    """Two heads, whose units move within them, between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found, _ = self.attention(inputs, inputs, inputs, need_weights=False)
        return self.head(found.mean(1))


@pytest.mark.parametrize(
    ("make", "shape"), [(mlp, (4,)), (cnn, (1, 4, 4)), (Attention, (4, 6))], ids=["mlp", "cnn", "heads"]
)
def test_a_permuted_copy_is_recovered_by_the_distance_without_weight_matching(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().eval()
    inputs = latent(20, *shape)
    spec = permutation_spec(model, inputs[:2])
    state = {key: value.clone() for key, value in state_of(model).items()}
    drawn = random_permutation(spec, rng(3))
    copy, targets = permute(state, spec, drawn), torch.arange(20) % 3
    found = match_sinkhorn(
        model, spec, state, copy, inputs, targets, rng=rng(1), goal="l2", start=identity(spec), epochs=30, lr=0.3
    )
    assert equal(found, invert(drawn))
    assert equal(compose(drawn, found), identity(spec))


def test_soft_moves_of_a_model_are_the_shares_of_permuted_ones() -> None:
    model, spec, (state, _), _, _ = models(mlp)
    one, other = random_permutation(spec, rng(0)), random_permutation(spec, rng(1))
    first = {name: torch.eye(len(order)).double()[order] for name, order in one.items()}
    last = next(reversed(one))
    mixed = first | {last: 0.3 * first[last] + 0.7 * torch.eye(len(other[last])).double()[other[last]]}
    found = move_softly(state, spec, mixed)
    ends = [permute(state, spec, one | {last: order[last]}) for order in (one, other)]
    for key, value in found.items():
        torch.testing.assert_close(value, 0.3 * ends[0][key] + 0.7 * ends[1][key])
    assert model.training is False


@pytest.mark.parametrize(("goal", "lr"), [("middle", 0.3), ("random", 1.0)])
def test_the_middle_has_a_lower_loss_than_after_weight_matching(goal: Goal, lr: float) -> None:
    model, spec, (state, other), inputs, targets = models(mlp)
    matched = match_weights(spec, state, other, rng=rng(1)).permutation
    found = match_sinkhorn(
        model, spec, state, other, inputs, targets, rng=rng(1), goal=goal, lr=lr, epochs=15, batch_size=30
    )
    before, after = (
        middle_loss(model, state, permute(other, spec, permutation), inputs, targets)
        for permutation in (matched, found)
    )
    assert after < before


def test_the_result_is_never_worse_than_the_start_and_follows_the_stream() -> None:
    model, spec, (state, other), inputs, targets = models(cnn)
    kept = {key: value.clone() for key, value in other.items()}
    start = random_permutation(spec, rng(5))
    options = {"start": start, "epochs": 2, "lr": 30.0, "batch_size": 20}
    found, again = (
        match_sinkhorn(model, spec, state, other, inputs, targets, rng=rng(2), goal="random", **options)
        for _ in range(2)
    )
    assert equal(found, again)
    assert all(torch.equal(other[key], value) for key, value in kept.items())
    assert distance(state, permute(other, spec, start)) > 0
    closer = match_sinkhorn(model, spec, state, other, inputs, targets, rng=rng(2), goal="l2", **options)
    assert distance(state, permute(other, spec, closer)) <= distance(state, permute(other, spec, start))


@pytest.mark.parametrize("search", [match_sinkhorn, match_straight_through])
def test_a_loss_that_is_not_a_number_is_refused(search: Callable[..., Permutation]) -> None:
    model, spec, states, inputs, targets = models(mlp)
    inputs[3] = torch.nan
    with pytest.raises(ValueError, match=r"^the search begins at a loss of NaN; give models and examples[^\n]*$"):
        search(model, spec, *states, inputs, targets, rng=rng(0), epochs=1)


@pytest.mark.parametrize("options", [{}, {"goal": "middle"}, {"goal": "l2"}])
def test_behind_a_frozen_beginning_it_finds_what_it_finds_on_the_features(options: dict[str, Goal]) -> None:
    search: Callable[..., Permutation] = match_sinkhorn if options else match_straight_through
    rest, _, states, inputs, targets = models(mlp)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        beginning = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double().eval()
    beginning[1].running_mean += 0.7
    whole = nn.Sequential(*beginning.requires_grad_(False), *rest)
    long = [{f"{int(key[0]) + 2}{key[1:]}": value for key, value in state.items()} for state in states]
    assert state_of(whole).keys() == long[0].keys()
    settings = {"epochs": 3, "lr": 0.3, "batch_size": 20, **options}
    spec = permutation_spec(whole, inputs[:2])
    found = search(whole, spec, *long, inputs, targets, rng=rng(1), **settings)
    features = beginning(inputs)
    expected = search(rest, permutation_spec(rest, inputs[:2]), *states, features, targets, rng=rng(1), **settings)
    assert [order.tolist() for order in found.values()] == [order.tolist() for order in expected.values()]
    matched = match_weights(spec, *long, rng=rng(1)).permutation
    assert options == {"goal": "l2"} or not equal(found, matched)


class Writing(nn.Sequential):
    """A model that changes its inputs in place, or a copy of them."""

    def __init__(self, copies: bool) -> None:
        super().__init__(*mlp(), nn.BatchNorm1d(3))
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x.clone() if self.copies else x).sub_(0.5).mul_(1.5))


@pytest.mark.parametrize("search", [match_sinkhorn, match_straight_through])
def test_a_model_that_writes_to_its_inputs_gets_a_copy(search: Callable[..., Permutation]) -> None:
    _, _, _, inputs, targets = models(mlp)
    found, before = [], inputs.clone()
    for copies in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model, other = (Writing(copies).double() for _ in range(2))
        spec, states = permutation_spec(model, inputs[:2]), [state_of(model), state_of(other)]
        order = search(model, spec, *states, inputs, targets, rng=rng(1), epochs=4, lr=0.5, batch_size=20)
        statistics = reset_statistics(model, states[0], inputs)["5.running_mean"].tolist()
        check_spec(model, states[0], spec, inputs, rng(2))
        found.append(({name: each.tolist() for name, each in order.items()}, statistics))
        assert torch.equal(inputs, before)
    assert found[0] == found[1]


def distance(params: Params, others: Params) -> float:
    return sum(float((params[key] - others[key]).square().sum()) for key in params if params[key].is_floating_point())


def test_what_cannot_be_searched_is_refused() -> None:
    model, spec, states, inputs, targets = models(mlp)
    with pytest.raises(ValueError, match="temperature = 0 must be positive"):
        sinkhorn(latent(3, 3), 0)
    for options, problem in (
        ({"epochs": 0}, "epochs = 0 must be at least 1"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"goal": "mid"}, "goal = 'mid' must be one of middle, random, l2"),
        ({"temperature": -1.0}, "temperature = -1.0 must be positive"),
    ):
        with pytest.raises(ValueError, match=problem):
            match_sinkhorn(model, spec, *states, inputs, targets, rng=np.random.default_rng(0), **options)
    with pytest.raises(ValueError, match="examples = 0 must be at least 1"):
        match_sinkhorn(model, spec, *states, inputs[:0], targets[:0], rng=rng(0))
