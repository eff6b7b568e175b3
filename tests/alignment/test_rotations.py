"""Rotations within heads and of the residual stream: symmetries, and the best ones."""

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.alignment.matching.rotating import best_turns
from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.merging.merged import Merged
from fedsim.alignment.merging.merging import merge_many, merge_to_universe
from fedsim.alignment.symmetries.norms import absorb_norms
from fedsim.alignment.symmetries.permutations import (
    Permutation,
    Spec,
    Symmetry,
    compose,
    identity,
    invert,
    moved,
    permute,
    random_permutation,
)
from fedsim.alignment.symmetries.rotation_spec import rotation_spec
from fedsim.alignment.symmetries.rotations import (
    Kind,
    Rotation,
    best_rotations,
    is_rotation,
    largest_gains,
    random_rotations,
    rotation_key,
)
from fedsim.alignment.symmetries.spec import permutation_spec
from fedsim.models.architectures.gpt import gpt
from fedsim.models.architectures.mlp import mlp
from fedsim.models.architectures.vit import vit
from fedsim.models.params import Params, state_of

TOKENS = torch.randint(0, 20, (2, 8), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "gpt": (partial(gpt, (8,), 20, depth=2, heads=2, width=16), TOKENS),
    "untied gpt": (partial(gpt, (8,), 20, depth=2, heads=2, width=16, tied=False), TOKENS),
    "vit": (partial(vit, (3, 8, 8), 10, depth=2, heads=4, width=32, mlp=48), IMAGES),
    "vit with one head": (partial(vit, (3, 8, 8), 10, depth=1, heads=1, width=16, mlp=24), IMAGES),
}
KINDS: tuple[Kind, ...] = ("orthogonal", "centred", "phases")


class Case(NamedTuple):
    model: nn.Module
    spec: Spec
    params: Params
    inputs: Tensor

    def run(self, params: Params) -> Tensor:
        with torch.no_grad():
            return functional_call(self.model, params, (self.inputs,))


@cache
def case(name: str, *, stream: bool) -> Case:
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    example = inputs.float() if inputs.is_floating_point() else inputs
    spec = rotation_spec(model, example, stream=stream)
    return Case(model.double(), spec, drawn(model, 0), inputs)


def drawn(model: nn.Module, seed: int) -> Params:
    """Return random weights; those of vectors are not near 0, so that norms can be divided by them."""
    generator = torch.Generator().manual_seed(seed)
    params = {}
    for key, value in state_of(model).items():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        params[key] = 1 + 0.3 * noise if value.ndim < 2 else noise * (2 * len(value) / value.numel()) ** 0.5
    return params


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


def furthest(params: Params, others: Params) -> float:
    return max(float((value - others[key]).abs().max()) for key, value in params.items())


every_case = pytest.mark.parametrize(
    ("name", "stream"), [(name, stream) for name in MODELS for stream in (False, True)], ids=str
)


def kinds(spec: Spec) -> dict[str, str]:
    return {name: each.kind for symmetry in spec.symmetries for each, name, _ in symmetry.parts}


def test_heads_rotate_everywhere_and_the_stream_only_where_scales_of_norms_can_move() -> None:
    for name in MODELS:
        for stream in (False, True):
            found = kinds(case(name, stream=stream).spec)
            rotates = stream and name != "gpt"
            assert [order for order, kind in found.items() if kind == "centred"] == (
                [] if not rotates else ["conv_proj" if "vit" in name else "wte"]
            )
            heads = {order for order, kind in found.items() if kind == "orthogonal"}
            expected = permutation_spec(case(name, stream=False).model, MODELS[name][1])
            assert heads == {
                order for each in expected.symmetries for order in each.widths if order[-3:-1] in (":q", ":v")
            }
            assert bool(case(name, stream=stream).spec.norms) == rotates
            assert case(name, stream=stream).spec.sizes == expected.sizes
    # Its units change places instead, with the scales of norms.
    assert case("gpt", stream=True).spec == case("gpt", stream=False).spec


@every_case
def test_moved_and_rotated_units_leave_the_outputs(name: str, stream: bool) -> None:
    each = case(name, stream=stream)
    absorbed = absorb_norms(each.params, each.spec.norms)
    assert difference(each.run(each.params), each.run(absorbed)) < 1e-12
    for seed in range(3):
        turned = permute(absorbed, each.spec, random_permutation(each.spec, rng(seed)))
        assert difference(each.run(each.params), each.run(turned)) < 1e-10
        assert furthest(absorbed, turned) > 0.5


def test_the_shapes_and_the_scales_of_norms_stay() -> None:
    each = case("untied gpt", stream=True)
    turned = permute(absorb_norms(each.params, each.spec.norms), each.spec, random_permutation(each.spec, rng()))
    assert {key: value.shape for key, value in turned.items()} == {k: v.shape for k, v in each.params.items()}
    assert {norm.weight for norm in each.spec.norms} == {
        "ln_f.weight",
        *(f"h.{block}.ln_{i}.weight" for block in (0, 1) for i in (1, 2)),
    }
    assert all(bool((turned[norm.weight] == 1).all()) for norm in each.spec.norms)


def test_layer_norm_does_not_commute_with_rotations_that_move_the_vector_of_ones() -> None:
    each = case("untied gpt", stream=True)
    absorbed = absorb_norms(each.params, each.spec.norms)
    wrong = {rotation_key("wte"): random_rotations("orthogonal", 1, 16, rng())}
    assert difference(each.run(absorbed), each.run(permute(absorbed, each.spec, wrong))) > 0.1


@every_case
def test_inverse_and_composition_are_those_of_the_functions(name: str, stream: bool) -> None:
    each = case(name, stream=stream)
    params = absorb_norms(each.params, each.spec.norms)
    first, then = (random_permutation(each.spec, rng(seed)) for seed in (1, 2))
    once = permute(params, each.spec, first)
    assert furthest(permute(once, each.spec, invert(first)), params) < 1e-12
    twice = permute(once, each.spec, then)
    assert furthest(permute(params, each.spec, compose(first, then)), twice) < 1e-12
    around = compose(compose(compose(first, then), invert(then)), invert(first))
    assert max(abs(value) for value in moved(around).values()) < 1e-12
    assert max(moved(identity(each.spec)).values()) == 0


@every_case
def test_a_moved_and_rotated_copy_is_recovered(name: str, stream: bool) -> None:
    each = case(name, stream=stream)
    params = absorb_norms(each.params, each.spec.norms)
    for seed in range(3):
        turned = permute(params, each.spec, random_permutation(each.spec, rng(100 + seed)))
        found = match_weights(each.spec, params, turned, rng=rng(seed))
        assert furthest(permute(turned, each.spec, found.permutation), params) < 1e-12
        assert (
            furthest(
                permute(
                    turned,
                    permutation_spec(each.model, each.inputs),
                    match_weights(permutation_spec(each.model, each.inputs), params, turned, rng=rng(seed)).permutation,
                ),
                params,
            )
            > 0.1
        )


@every_case
def test_the_squared_distance_falls_with_each_step_and_is_what_the_objective_says(name: str, stream: bool) -> None:
    each = case(name, stream=stream)
    reference, params = (absorb_norms(drawn(each.model, seed), each.spec.norms) for seed in (1, 2))
    start = random_permutation(each.spec, rng(3))
    found = match_weights(each.spec, reference, params, rng=rng(4), start=start)
    assert (np.diff(found.objective) > 0).all()
    assert len(found.objective) > 3
    squares = sum(float((each**2).sum()) for one in (reference, params) for each in one.values())
    for permutation, objective in ((start, found.objective[0]), (found.permutation, found.objective[-1])):
        turned = permute(params, each.spec, permutation)
        distance = sum(float(((value - turned[key]) ** 2).sum()) for key, value in reference.items())
        assert distance == pytest.approx(squares - 2 * objective, rel=1e-10)
    plain = permutation_spec(each.model, each.inputs)
    assert found.objective[-1] > match_weights(plain, reference, params, rng=rng(4)).objective[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_no_matrix_of_a_kind_gains_more(kind: Kind) -> None:
    gains = torch.from_numpy(rng(5).standard_normal((4, 4)))
    best = best_rotations(kind, gains)
    reached = float((best * gains).sum())
    torch.testing.assert_close(best @ best.T, torch.eye(4, dtype=torch.float64))
    assert reached == pytest.approx(float(largest_gains(kind, gains)), rel=1e-12)
    others = random_rotations(kind, 3000, 4, rng(6))
    gained = (others * gains).sum((1, 2))
    assert reached >= float(gained.max())
    assert float(gained.max()) > 0.5 * reached
    # The gradient along the group vanishes: rotating further in any direction gains less.
    for other in others[:20]:
        skew = torch.linalg.matrix_exp(1e-3 * (other - other.T))
        if kind == "orthogonal":
            assert float(((skew @ best) * gains).sum()) < reached
    if kind == "centred":
        torch.testing.assert_close(best.sum(1), torch.ones(4, dtype=torch.float64))
        torch.testing.assert_close(others.sum(2), torch.ones(3000, 4, dtype=torch.float64))


def test_phases_are_those_of_complex_numbers() -> None:
    """Their argument is that of sum conj(b) a, of queries and keys."""
    generator = torch.Generator().manual_seed(0)
    ours, others = (torch.randn(6, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = (torch.complex(each[:3], each[3:]) for each in (ours, others))
    matrix = best_rotations("phases", ours @ others.T)
    unit = (b.conj() * a).sum(1)
    rotated = (unit / unit.abs())[:, None] * b
    torch.testing.assert_close(matrix @ others, torch.cat([rotated.real, rotated.imag]))


def gain_of_heads(gains: dict[str, Any], place: int, head: int) -> float:
    """Return the sum of the singular values of a pair of heads."""
    pairs = (each.reshape(3, len(each) // 3, 3, -1)[place, :, head] for each in gains.values())
    return sum(float(np.linalg.svd(each, compute_uv=False).sum()) for each in pairs)


def test_no_assignment_of_heads_gains_more() -> None:
    symmetry = Symmetry(3, {"qk": 4, "vo": 5}, (Rotation("orthogonal", {"qk": 1}), Rotation("orthogonal", {"vo": 1})))
    for seed in range(5):
        gains = {name: rng(seed + 10 * w).standard_normal((3 * w, 3 * w)) for name, w in symmetry.widths.items()}
        totals = [
            sum(gain_of_heads(gains, place, head) for place, head in enumerate(order))
            for order in permutations(range(3))
        ]
        assert gained(best_turns(symmetry, gains), gains) == pytest.approx(max(totals), rel=1e-12)


def gained(found: Permutation, gains: dict[str, Any]) -> float:
    """Return the sum of gains, with each order and its matrices as one matrix."""
    total = 0.0
    for name, gain in gains.items():
        matrix = torch.block_diag(*found[rotation_key(name)])[:, found[name].argsort()]
        total += float((matrix * torch.from_numpy(gain)).sum())
    return total


def test_copies_in_other_frames_merge_into_the_model() -> None:
    each = case("vit", stream=True)
    params = absorb_norms(each.params, each.spec.norms)
    members = [params, *(permute(params, each.spec, random_permutation(each.spec, rng(seed))) for seed in (1, 2))]
    merged = merge_many(each.spec, members, rng=rng(0))
    assert furthest(merged.params, params) < 1e-12
    around = compose(compose(merged.between(0, 1), merged.between(1, 2)), merged.between(2, 0))
    assert max(abs(value) for value in moved(around).values()) < 1e-12


def test_a_norm_that_switches_units_off_is_refused_and_so_are_scales_that_are_not_absorbed() -> None:
    each = case("vit", stream=True)
    key = each.spec.norms[0].weight
    for value, rule in ((0.0, "that is 0.*by head-rotations"), (math.nan, "that is not finite; match models")):
        scale = each.params[key].clone()
        scale[3] = value
        with pytest.raises(ValueError, match=rf"^{key} has an entry {rule}[^\n]*$"):
            absorb_norms(each.params | {key: scale}, each.spec.norms)
    turned = random_permutation(each.spec, rng())
    for act in (
        lambda: permute(each.params, each.spec, turned),
        lambda: match_weights(each.spec, each.params, each.params, rng=rng()),
    ):
        with pytest.raises(ValueError, match=r"is not 1, and units around it cannot be rotated.*absorb_norms"):
            act()
    only_orders = {name: order for name, order in identity(each.spec).items() if not is_rotation(name)}
    assert furthest(permute(each.params, each.spec, only_orders), each.params) == 0


def test_absorbed_norms_stay_and_are_not_copied() -> None:
    each = case("vit", stream=True)
    absorbed = absorb_norms(each.params, each.spec.norms)
    again = absorb_norms(absorbed, each.spec.norms)
    assert all(again[key] is value for key, value in absorbed.items())


@pytest.mark.parametrize("merge", [merge_many, merge_to_universe])
def test_small_gains_of_rotations_are_no_reason_to_match_all_others_again(merge: Callable[..., Merged]) -> None:
    each = case("untied gpt", stream=True)
    members = [absorb_norms(drawn(each.model, seed), each.spec.norms) for seed in range(3)]
    merged = merge(each.spec, members, rng=rng())
    assert len(merged.spreads) < 12
    assert (np.diff(merged.spreads) < 0).all()
    # Another search from there finds little more.
    moved_ = [permute(member, each.spec, own) for member, own in zip(members, merged.permutations, strict=True)]
    assert merge(each.spec, moved_, rng=rng()).spreads[-1] > 0.97 * merged.spreads[-1]


class Activated(nn.Module):
    """Attention whose queries and keys pass a non-linearity, so that its heads are not rotated."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = self.qkv(inputs).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = (torch.relu(query) @ torch.relu(key).transpose(2, 3)).softmax(3) @ value
        return self.head(torch.relu(self.out(attended.transpose(1, 2).flatten(2)).mean(1)))


def test_heads_with_a_non_linearity_are_not_rotated() -> None:
    torch.manual_seed(0)
    model = Activated()
    with pytest.raises(ValueError, match=r"^model = Activated has no units that can be rotated.*by permutations$"):
        rotation_spec(model, torch.randn(2, 5, 8))
    for value in (*model.qkv.parameters(), *model.out.parameters()):
        value.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"^model = Activated has no units that can be rotated.*attention heads of two or more units$"
    ):
        rotation_spec(model, torch.randn(2, 5, 8))


def test_a_model_without_heads_has_nothing_to_rotate() -> None:
    with pytest.raises(
        ValueError,
        match=r"has no units that can be rotated, such as those within attention heads of two or more units; match by",
    ):
        rotation_spec(mlp((6,), 3, hidden=(4,)), torch.randn(2, 6))


def test_tensors_that_copies_share_stay_as_they_are() -> None:
    model = vit((3, 8, 8), 10, depth=2, heads=4, width=32, mlp=48)
    for value in model.encoder.layers[0].parameters():
        value.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    spec = rotation_spec(model, IMAGES.float())
    assert any("encoder_layer_1" in name for name in kinds(spec))
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[key])
    model(IMAGES.float())
