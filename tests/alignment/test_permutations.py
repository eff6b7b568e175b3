import math
from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor

from fedsim.alignment.symmetries.permutations import (
    Permutation,
    Segment,
    Spec,
    Symmetry,
    compose,
    identity,
    invert,
    moved,
    permute,
    random_permutation,
)
from fedsim.models.params import Params
from fedsim.seeds import rng

# Plain units, channels in two groups, and heads with two orders; flattened, concatenated and padded axes.
SPEC = Spec(
    (Symmetry(5, {"fc": 1}), Symmetry(2, {"conv": 3}), Symmetry(3, {"attn:qk": 2, "attn:vo": 4})),
    {
        "fc.weight": ((Segment(5, "fc"),), (Segment(12, "conv", 2), Segment(2), Segment(12, "attn:vo"))),
        "conv.running_mean": ((Segment(6, "conv"),),),
        "conv.weight": ((Segment(6, "conv"),), (Segment(3),), (Segment(2),)),
        "attn.in": ((Segment(6, "attn:qk"), Segment(6, "attn:qk"), Segment(12, "attn:vo")), (Segment(5, "fc"),)),
        "scale": (),
    },
    frozenset({"conv.running_mean"}),
)


def draw() -> Params:
    generator = torch.Generator().manual_seed(0)
    shapes = {key: [sum(part.size for part in axis) for axis in axes] for key, axes in SPEC.axes.items()}
    params = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return {**params, "conv.num_batches_tracked": torch.tensor(3)}


def origin(axis: tuple[Segment, ...], permutation: Permutation) -> list[int]:
    """Return where each entry along an axis comes from, entry by entry."""
    found: list[int] = []
    for part in axis:
        start = len(found)
        for entry in range(part.size):
            unit, inside = divmod(entry, part.repeat)
            old = unit if part.order is None else int(permutation[part.order][unit])
            found.append(start + old * part.repeat + inside)
    return found


def test_every_entry_of_a_permuted_model_comes_from_where_its_axes_say() -> None:
    params, drawn = draw(), random_permutation(SPEC, rng(0))
    after = permute(params, SPEC, drawn)
    assert after.keys() == params.keys()
    for key, axes in SPEC.axes.items():
        for place in product(*(range(size) for size in params[key].shape)):
            old = tuple(origin(axis, drawn)[i] for axis, i in zip(axes, place, strict=True))
            assert after[key][place] == params[key][old]
    assert after["conv.num_batches_tracked"] is params["conv.num_batches_tracked"]
    assert after["scale"] is params["scale"]


def test_one_permutation_after_the_other_is_their_composition() -> None:
    params, first, then = draw(), *(random_permutation(SPEC, rng(seed)) for seed in (1, 2))
    twice, once = permute(permute(params, SPEC, first), SPEC, then), permute(params, SPEC, compose(first, then))
    assert_equal(twice, once)
    other_way = permute(params, SPEC, compose(then, first))
    assert not torch.equal(other_way["attn.in"], once["attn.in"])


def test_the_inverse_restores_every_bit_and_the_identity_moves_nothing() -> None:
    params, drawn = draw(), random_permutation(SPEC, rng(3))
    assert_equal(permute(permute(params, SPEC, drawn), SPEC, invert(drawn)), params)
    assert_equal(permute(params, SPEC, identity(SPEC)), params)
    assert moved(identity(SPEC)) == dict.fromkeys(SPEC.sizes, 0.0)
    both = compose(drawn, invert(drawn))
    assert all(torch.equal(both[name], order) for name, order in identity(SPEC).items())


def test_orders_that_a_permutation_does_not_have_stay() -> None:
    params, drawn = draw(), random_permutation(SPEC, rng(4))
    after = permute(params, SPEC, {"conv": drawn["conv"]})
    assert torch.equal(after["attn.in"], params["attn.in"])
    assert torch.equal(after["conv.running_mean"], params["conv.running_mean"][drawn["conv"]])
    part = permute({"conv.weight": params["conv.weight"]}, SPEC, drawn)
    assert part.keys() == {"conv.weight"}


def test_units_of_a_block_stay_together_and_blocks_move_alike_in_all_their_orders() -> None:
    for seed in range(20):
        drawn = random_permutation(SPEC, rng(seed))
        assert {name: len(order) for name, order in drawn.items()} == SPEC.sizes
        assert all(sorted(order.tolist()) == list(range(len(order))) for order in drawn.values())
        heads = [blocks_of(drawn[name], width) for name, width in (("attn:qk", 2), ("attn:vo", 4))]
        assert heads[0] == heads[1]
        assert sorted(heads[0]) == [0, 1, 2]
        assert sorted(blocks_of(drawn["conv"], 3)) == [0, 1]


def blocks_of(order: Tensor, width: int) -> list[int]:
    rows = (order // width).view(-1, width)
    assert bool((rows == rows[:, :1]).all())
    return rows[:, 0].tolist()


def test_every_permutation_of_a_symmetry_is_drawn_equally_often() -> None:
    spec, generator = Spec((Symmetry(2, {"heads": 2}),), {}), rng(5)
    counts = Counter(tuple(random_permutation(spec, generator)["heads"].tolist()) for _ in range(800))
    blocks = ([0, 1], [1, 0])
    expected = {
        (*(2 * b + i for i in first), *(2 * (1 - b) + i for i in last))
        for b in (0, 1)
        for first in blocks
        for last in blocks
    }
    assert counts.keys() == expected
    # Chi-squared with seven degrees of freedom exceeds 24.3 once in a thousand.
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 24.3


def test_a_spec_says_how_many_units_each_order_has_and_where_it_is_used_but_for_statistics() -> None:
    assert SPEC.sizes == {"fc": 5, "conv": 6, "attn:qk": 6, "attn:vo": 12}
    assert list(SPEC.uses("conv")) == [("fc.weight", 1), ("conv.weight", 0)]
    assert list(SPEC.uses("fc")) == [("fc.weight", 0), ("attn.in", 1)]
    assert list(SPEC.uses("nothing")) == []


@pytest.mark.parametrize(
    ("symmetry", "permutations"),
    [
        (Symmetry(5, {"a": 1}), math.factorial(5)),
        (Symmetry(1, {"a": 5}), math.factorial(5)),
        (Symmetry(2, {"a": 3}), math.factorial(2) * math.factorial(3) ** 2),
        (Symmetry(5, {"a": 1, "b": 1}), math.factorial(5)),
    ],
)
def test_units_in_single_blocks_or_in_one_can_take_any_place_and_others_cannot(
    symmetry: Symmetry, permutations: int
) -> None:
    spec, generator = Spec((symmetry,), {}), rng(6)
    drawn = (random_permutation(spec, generator) for _ in range(20 * permutations))
    assert len({tuple(torch.cat(list(orders.values())).tolist()) for orders in drawn}) == permutations


def test_the_share_of_moved_units_is_counted_by_order() -> None:
    assert moved({"a": torch.tensor([1, 0, 2, 3]), "b": torch.tensor([0])}) == {"a": 0.5, "b": 0.0}


def assert_equal(first: Params, second: Params) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_what_does_not_belong_to_the_architecture_cannot_be_permuted() -> None:
    params = draw()
    with pytest.raises(
        ValueError, match=r"^the spec has no entry 'tied'; pass those of fedsim\.models\.params\.state_of"
    ):
        permute({**params, "tied": params["fc.weight"]}, SPEC, {})
    for units in (4, 6):
        with pytest.raises(ValueError, match=f"^the order 'fc' has {units} units and must have 5; "):
            permute(params, SPEC, {"fc": torch.arange(units)})
