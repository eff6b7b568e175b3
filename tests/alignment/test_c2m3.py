"""Frank-Wolfe steps against autograd, brute force and models whose best matching is known."""

from dataclasses import replace
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.alignment.matching.relaxations import Relaxation, closest, matrices_of, moved_by, softened
from fedsim.alignment.matching.weight_matching import counted, match_weights
from fedsim.alignment.merging.c2m3 import merge_c2m3
from fedsim.alignment.merging.frank_wolfe import RelaxedModel, objective_of, step_of, targets_of
from fedsim.alignment.merging.merging import merge_many
from fedsim.alignment.repair.repairing import repair
from fedsim.alignment.symmetries.permutations import Spec, Symmetry, compose, invert, permute, random_permutation
from fedsim.alignment.symmetries.rotations import Rotation
from fedsim.models.params import Params
from tests.alignment.cases import CASES, chain, draw
from tests.alignment.test_merging import SPEC, close, copies, kin, orders, rng, still

ZERO = torch.zeros(())


def value_of(spec: Spec, members: list[Params], matrices: list[Relaxation]) -> Tensor:
    """Return the objective pair by pair and layer by layer, as the paper writes it."""
    moved = [
        {
            key: moved_by(value, spec.axes[key], own, range(value.ndim))
            for key, value in counted(spec, each, each).items()
        }
        for each, own in zip(members, matrices, strict=True)
    ]
    terms = [(one[key] * other[key]).sum() for one, other in combinations(moved, 2) for key in one]
    return torch.stack(terms).sum()


def relaxed(spec: Spec, count: int, seed: int = 0) -> list[Relaxation]:
    """Return matrices between two permutations, softened."""
    generator, found = rng(seed), []
    for _ in range(count):
        one, other = (matrices_of(random_permutation(spec, generator)) for _ in range(2))
        found.append(softened({name: 0.7 * one[name] + 0.3 * other[name] for name in one}, 0.2))
    return found


def models_of(spec: Spec, members: list[Params], matrices: list[Relaxation]) -> list[RelaxedModel]:
    return [RelaxedModel(spec, counted(spec, each, each), own) for each, own in zip(members, matrices, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_gradient_and_objective_are_those_of_the_pairs(name: str) -> None:
    spec = CASES[name].spec
    members, matrices = [draw(spec, seed) for seed in range(3)], relaxed(spec, 3)
    models = models_of(spec, members, matrices)
    everyone = [each.params for each in models]
    for number, model in enumerate(models):
        leaf = {key: each.clone().requires_grad_() for key, each in matrices[number].items()}
        value = value_of(spec, members, [*matrices[:number], leaf, *matrices[number + 1 :]])
        assert objective_of(everyone) == pytest.approx(value.item(), rel=1e-12)
        value.backward()
        rest = [params for k, params in enumerate(everyone) if k != number]
        others = {key: sum((each[key] for each in rest), ZERO) for key in everyone[0]}
        for order, found in model.gradient(others).items():
            torch.testing.assert_close(found, leaf[order].grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_a_step_ends_where_the_objective_on_its_way_is_largest(name: str) -> None:
    spec = CASES[name].spec
    members, matrices = [draw(spec, seed) for seed in range(3)], relaxed(spec, 3)
    models = models_of(spec, members, matrices)
    targets = targets_of(models)
    step = step_of(models, targets)

    def at(t: float) -> float:
        ends = [matrices_of(target) for target in targets]
        mixed = [{n: (1 - t) * own[n] + t * end[n] for n in own} for own, end in zip(matrices, ends, strict=True)]
        return value_of(spec, members, mixed).item()

    grid = np.linspace(0, 1, 101)
    assert step.value == pytest.approx(at(step.t), rel=1e-12)
    assert step.value >= max(at(t) for t in grid) - 1e-9 * abs(step.value)
    assert step.slope == pytest.approx((at(1e-6) - at(-1e-6)) / 2e-6, rel=1e-5)
    for model, target in zip(models, targets, strict=True):
        model.step_(target, step.t)
    assert objective_of([model.params for model in models]) == pytest.approx(step.value, rel=1e-12)
    # A second step from there, to see that what is kept between steps is right.
    again = step_of(models, targets_of(models))
    assert again.value >= step.value
    moved = value_of(spec, members, [model.matrices for model in models])
    assert float(moved) == pytest.approx(step.value, rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("name", ["chain", "convolution"])
def test_permuted_copies_are_equal_in_the_universe_and_merge_into_the_model(name: str, count: int) -> None:
    spec = CASES[name].spec
    params, members = copies(CASES[name], count)
    merged = merge_c2m3(spec, members, weights=[1.0, 2.0, 3.0, 4.0, 5.0][:count], rng=rng())
    close(merged.params, members[0])
    for member, permutation in zip(members, merged.permutations, strict=True):
        close(permute(member, spec, permutation), members[0])
    assert merged.final == pytest.approx(merged.objective[-1], rel=1e-12)
    close(merge_c2m3(spec, members, rng=rng(), start=params).params, params)


def test_ways_through_the_universe_agree_and_those_of_pairs_do_not() -> None:
    members = kin(4, apart=2.0)
    merged = merge_c2m3(SPEC, members, rng=rng())
    for i, j, k in product(range(4), repeat=3):
        around = compose(compose(merged.between(i, j), merged.between(j, k)), merged.between(k, i))
        assert still(around)
    pairs = [match_weights(SPEC, members[i], members[j], rng=rng()).permutation for i, j in ((0, 1), (1, 2), (2, 0))]
    assert not still(compose(compose(*pairs[:2]), pairs[2]))


def test_two_models_merge_as_they_are_matched() -> None:
    members = kin(2)
    matching = match_weights(SPEC, *members, rng=rng())
    merged = merge_c2m3(SPEC, members, rng=rng())
    assert merged.final == pytest.approx(matching.objective[-1], rel=1e-12)
    assert orders(merged.between(1, 0)) == orders(matching.permutation)


def test_the_objective_only_rises_and_ends_above_that_of_merging_one_by_one() -> None:
    members = kin(8, apart=2.0)
    merged = merge_c2m3(SPEC, members, rng=rng())
    assert (np.diff(merged.objective) >= -1e-9).all()
    moved = [counted(SPEC, permute(m, SPEC, p), m) for m, p in zip(members, merged.permutations, strict=True)]
    assert merged.final == pytest.approx(objective_of(moved), rel=1e-12)
    others = merge_many(SPEC, members, rng=rng()).permutations
    one_by_one = [counted(SPEC, permute(m, SPEC, p), m) for m, p in zip(members, others, strict=True)]
    assert merged.final > objective_of(one_by_one)


def test_the_last_assignment_may_lower_the_objective_and_both_are_reported() -> None:
    members = [draw(chain(3, 4, 4, 2), seed) for seed in range(2)]
    found = [merge_c2m3(chain(3, 4, 4, 2), members, rng=rng(), steps=1, softness=s) for s in (0.5, 0.9, 1.0)]
    assert any(each.final < each.objective[-1] - 1e-3 for each in found)


def test_the_order_of_members_only_names_the_universe() -> None:
    members = kin(5, apart=2.0)
    merged = merge_c2m3(SPEC, members, rng=rng(), start=draw(SPEC, 9))
    for relabelled in ([4, 2, 0, 1, 3], [1, 0, 2, 3, 4]):
        for start, reference in ((None, merge_c2m3(SPEC, members, rng=rng())), (draw(SPEC, 9), merged)):
            other = merge_c2m3(SPEC, [members[k] for k in relabelled], rng=rng(), start=start)
            assert other.final == pytest.approx(reference.final, rel=1e-12)
            for one, two in combinations(range(5), 2):
                same = reference.between(relabelled[one], relabelled[two])
                assert orders(other.between(one, two)) == orders(same)


@pytest.mark.parametrize("widths", [(8, 8, 8, 8, 8), (12, 16, 14, 4)])
def test_the_order_of_entries_has_no_effect(widths: tuple[int, ...]) -> None:
    spec = chain(*widths)
    members = [draw(spec, seed) for seed in range(3)]
    layers = ["fc1", "fc3", "fc2", *(["fc4"] if len(widths) > 4 else [])]
    keys = [f"{layer}.{name}" for layer in layers for name in ("bias", "weight")]
    merged, other = (
        merge_c2m3(spec, each, rng=rng())
        for each in (members, [members[0], *({key: each[key] for key in keys} for each in members[1:])])
    )
    assert other.objective == pytest.approx(merged.objective, rel=1e-12)
    assert other.final == pytest.approx(merged.final, rel=1e-12)
    assert [orders(each) for each in other.permutations] == [orders(each) for each in merged.permutations]
    close(other.params, merged.params)


def test_single_precision_is_kept_and_finds_the_same() -> None:
    members = [{key: value.float() for key, value in each.items()} for each in kin(4, apart=2.0)]
    merged = merge_c2m3(SPEC, members, rng=rng())
    exact = merge_c2m3(SPEC, [{key: value.double() for key, value in each.items()} for each in members], rng=rng())
    assert [orders(each) for each in merged.permutations] == [orders(each) for each in exact.permutations]
    assert merged.final == pytest.approx(exact.final, rel=1e-12)  # sums are in float64
    assert merged.objective == pytest.approx(exact.objective, rel=1e-6)
    assert (np.diff(merged.objective) > 0).all()
    (model,) = models_of(SPEC, members[:1], relaxed(SPEC, 1))
    single = RelaxedModel(SPEC, members[0], relaxed(SPEC, 1)[0])
    for key, value in single.params.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), model.params[key], rtol=1e-5, atol=1e-6)


def test_weights_enter_only_the_mean() -> None:
    members, weights = kin(3, apart=2.0), [1.0, 7.0, 2.0]
    even, uneven = merge_c2m3(SPEC, members, rng=rng()), merge_c2m3(SPEC, members, weights=weights, rng=rng())
    assert [orders(each) for each in even.permutations] == [orders(each) for each in uneven.permutations]
    moved = [permute(member, SPEC, each) for member, each in zip(members, uneven.permutations, strict=True)]
    parts = [{key: w / 10 * value for key, value in each.items()} for w, each in zip(weights, moved, strict=True)]
    mean = {key: sum((each[key] for each in parts), ZERO) for key in members[0]}
    close(uneven.params, mean)


def test_tiny_models_reach_what_trying_everything_finds() -> None:
    """Of three models with two hidden layers of three units: all 6 ** 4 matchings with the first."""
    spec = chain(4, 3, 3, 2)
    every = [torch.tensor(order) for order in permutations(range(3))]
    reached = 0
    for seed in range(4):
        members = [draw(spec, 10 * seed + each) for each in range(3)]
        moved = [
            [permute(member, spec, {"fc1": one, "fc2": two}) for one, two in product(every, repeat=2)]
            for member in members[1:]
        ]
        first, *others = (
            torch.stack([torch.cat([v.flatten() for v in each.values()]) for each in every_way])
            for every_way in ([members[0]], *moved)
        )
        best = float((first @ others[0].T + (first @ others[1].T).T + others[1] @ others[0].T).max())
        tries = [merge_c2m3(spec, members, rng=rng(), softness=softness).final for softness in (0.0, 0.5, 0.9)]
        assert max(tries) <= best + 1e-9
        reached += max(tries) > best - 1e-9
    assert reached >= 3  # a local search


def test_blocks_stay_whole() -> None:
    spec = CASES["heads"].spec
    assert any(width > 1 for symmetry in spec.symmetries for width in symmetry.widths.values())
    for seed in range(3):
        permutation = random_permutation(spec, rng(seed))
        assert orders(closest(spec, softened(matrices_of(permutation), 0.4))) == orders(permutation)


def test_a_merge_is_repaired_with_the_moved_members() -> None:
    def linear(*widths: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], widths[2])).double()

    model, inputs = linear(5, 8, 3), torch.from_numpy(rng(3).standard_normal((64, 5)))
    spec = chain(5, 8, 3)
    names = {"fc1.weight": "0.weight", "fc1.bias": "0.bias", "fc2.weight": "2.weight", "fc2.bias": "2.bias"}
    members = [draw(spec, seed) for seed in range(3)]
    merged = merge_c2m3(spec, members, rng=rng())
    moved = [permute(member, spec, each) for member, each in zip(members, merged.permutations, strict=True)]
    renamed, *own = ({names[k]: v for k, v in each.items()} for each in (merged.params, *moved))
    fixed = repair(model, renamed, own, inputs)

    def hidden(params: Params) -> Tensor:
        return inputs @ params["0.weight"].T + params["0.bias"]

    goal = torch.stack([hidden(each).std(0, correction=0) for each in own]).mean(0)
    torch.testing.assert_close(hidden(fixed).std(0, correction=0), goal, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(hidden(renamed).std(0, correction=0), goal, rtol=1e-2)
    # In other places the same members give another goal.
    assert not torch.allclose(
        torch.stack([hidden({names[k]: v for k, v in each.items()}).std(0, correction=0) for each in members]).mean(0),
        goal,
        rtol=1e-2,
    )
    assert functional_call(model, fixed, (inputs,)).isfinite().all()


def test_relaxed_moves_of_permutations_are_permuted_models() -> None:
    for case in CASES.values():
        params, permutation = draw(case.spec, 1), random_permutation(case.spec, rng(2))
        matrices, moved = matrices_of(permutation), permute(params, case.spec, permutation)
        for key, value in params.items():
            found = moved_by(value, case.spec.axes[key], matrices, range(value.ndim))
            assert torch.equal(found, moved[key])
            back = moved_by(found, case.spec.axes[key], matrices_of(invert(permutation)), range(value.ndim))
            assert torch.equal(back, value)


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^steps = 0 must be at least 1; "):
        merge_c2m3(SPEC, kin(2), rng=rng(), steps=0)
    with pytest.raises(ValueError, match=r"^softness = 1\.5 must be from 0"):
        merge_c2m3(SPEC, kin(2), rng=rng(), softness=1.5)
    rotated = Symmetry(1, {"fc1": SPEC.sizes["fc1"]}, (Rotation("orthogonal", {"fc1": 1}),))
    with pytest.raises(ValueError, match=r"^c2m3 finds permutations alone; pass a spec without rotations[^\n]*$"):
        merge_c2m3(replace(SPEC, symmetries=(rotated,)), kin(2), rng=rng())
