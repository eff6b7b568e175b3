import weakref
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
import torch

from fedsim.models import averaging, blocks
from fedsim.models.averaging import WeightedMean, mean_of_present, mean_of_sent, weighted_mean
from fedsim.models.params import Params, as_flat, flat_copy

SHAPES = {"conv": (5, 3, 2, 2), "scalar": (), "none": (0, 3), "wide": (1, 40), "bias": (37,)}
MeanOf = Callable[..., Params]
DTYPES = [torch.float32, torch.float64]


def models(n: int, dtype: torch.dtype = torch.float32) -> list[Params]:
    generator = torch.Generator().manual_seed(n)
    return [{key: torch.randn(shape, generator=generator).to(dtype) for key, shape in SHAPES.items()} for _ in range(n)]


def weights_of(n: int) -> list[float]:
    return [1.0 + 7 * (i % 3) + i / 3 for i in range(n)]


def streamed(members: Sequence[Params], weights: Sequence[float], dtype: torch.dtype = torch.float64) -> Params:
    mean = WeightedMean(dtype)
    for member, weight in zip(members, weights, strict=True):
        mean.add(member, weight)
    return mean.result()


def assert_same_bits(one: Params, other: Params) -> None:
    assert list(one) == list(other)
    assert all(torch.equal(value, other[key]) and value.dtype == other[key].dtype for key, value in one.items())


both_forms = pytest.mark.parametrize("mean_of", [weighted_mean, streamed])


def test_weighted_mean_by_hand_with_unequal_weights() -> None:
    members = [{"w": torch.tensor([1.0, 10.0])}, {"w": torch.tensor([4.0, -2.0])}]
    assert weighted_mean(members, [1, 3])["w"].tolist() == [3.25, 1.0]


def test_weighted_mean_is_the_exact_mean_rounded_once() -> None:
    members, weights = models(11), weights_of(11)
    total = sum(map(Fraction, weights))
    for key, value in weighted_mean(members, weights).items():
        terms = zip(*(member[key].flatten().tolist() for member in members), strict=True)
        exact = [sum(Fraction(w) * Fraction(x) for w, x in zip(weights, xs, strict=True)) / total for xs in terms]
        assert value.flatten().tolist() == torch.tensor([float(x) for x in exact]).tolist()


def test_weighted_mean_accumulates_in_float64() -> None:
    # In float32, adding 1e-3 to 3e4 ten times loses half of each term.
    values = [3e4] + [1e-3] * 10
    mean = weighted_mean([{"w": torch.tensor([value])} for value in values], [1.0] * 11)["w"]
    assert mean.item() == torch.tensor(sum(map(float, torch.tensor(values).tolist())) / 11).item()
    assert mean.dtype == torch.float32


def test_float32_is_near_and_never_narrows_what_is_wider() -> None:
    members, weights = models(11), weights_of(11)
    exact, fast = weighted_mean(members, weights), weighted_mean(members, weights, torch.float32)
    assert any(not torch.equal(fast[key], value) for key, value in exact.items())
    for key, value in exact.items():
        torch.testing.assert_close(fast[key], value, rtol=1e-6, atol=1e-6)
    wide = models(3, torch.float64)
    assert_same_bits(weighted_mean(wide, [1, 2, 4], torch.float32), weighted_mean(wide, [1, 2, 4]))


@both_forms
@pytest.mark.parametrize("accumulated", DTYPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, *DTYPES])
def test_equal_models_are_a_fixed_point(mean_of: MeanOf, accumulated: torch.dtype, dtype: torch.dtype) -> None:
    (model,) = models(1, dtype)
    assert_same_bits(mean_of([model] * 13, weights_of(13), accumulated), model)


def test_a_common_factor_of_the_weights_does_not_matter() -> None:
    members, weights = models(9, torch.float64), weights_of(9)
    mean = weighted_mean(members, weights)
    assert_same_bits(weighted_mean(members, [weight * 1024 for weight in weights]), mean)
    for key, value in weighted_mean(members, [weight * 0.3 for weight in weights]).items():
        torch.testing.assert_close(value, mean[key], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("accumulated", DTYPES)
@pytest.mark.parametrize("group", [1, 3, 8, 100])
def test_members_that_come_one_by_one_give_the_same_bits(
    accumulated: torch.dtype, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averaging, "GROUP", group)
    members, weights = models(19), weights_of(19)
    members[4:9] = map(flat_copy, members[4:9])
    mean = WeightedMean(accumulated)
    for n, (member, weight) in enumerate(zip(members, weights, strict=True), start=1):
        mean.add(member, weight)
        if n % 5 == 0:
            assert_same_bits(mean.result(), weighted_mean(members[:n], weights[:n], accumulated))
    assert_same_bits(mean.result(), weighted_mean(members, weights, accumulated))


@both_forms
@pytest.mark.parametrize("accumulated", DTYPES)
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_blocks_buffers_and_threads_change_no_bit(
    mean_of: MeanOf, accumulated: torch.dtype, flat: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    members, weights = models(10), weights_of(10)
    expected = weighted_mean(members, weights, accumulated)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 72)
    monkeypatch.setattr(blocks, "THREADS_FROM", 0)
    monkeypatch.setattr(blocks, "THREADS", threads)
    members = [flat_copy(member) for member in members] if flat else members
    assert_same_bits(mean_of(members, weights, accumulated), expected)


@both_forms
def test_neither_the_layout_of_a_tensor_nor_its_gradient_matters(mean_of: MeanOf) -> None:
    members, weights = models(3), weights_of(3)
    others = [dict(member) for member in members]
    others[1]["conv"] = others[1]["conv"].to(memory_format=torch.channels_last)
    others[2]["bias"] = others[2]["bias"].repeat_interleave(2)[::2].requires_grad_()
    mean = mean_of(others, weights)
    assert_same_bits(mean, weighted_mean(members, weights))
    assert not mean["bias"].requires_grad


@both_forms
def test_the_order_of_the_entries_is_the_first_members(mean_of: MeanOf) -> None:
    members = models(3)
    mixed = [members[0], dict(reversed(members[1].items())), members[2] | {"more": torch.ones(1)}]
    assert_same_bits(mean_of(mixed, [1.0, 2.0, 3.0]), weighted_mean(members, [1.0, 2.0, 3.0]))


@both_forms
@pytest.mark.parametrize("accumulated", DTYPES)
def test_entries_of_several_dtypes_keep_their_own(mean_of: MeanOf, accumulated: torch.dtype) -> None:
    members, weights = models(5), weights_of(5)
    dtypes = {"conv": torch.bfloat16, "wide": torch.float64, "bias": torch.float16}
    members = [{key: value.to(dtypes.get(key, torch.float32)) for key, value in m.items()} for m in members]
    mean = mean_of([flat_copy(member) for member in members], weights, accumulated)
    for key in SHAPES:
        assert_same_bits({key: mean[key]}, weighted_mean([{key: m[key]} for m in members], weights, accumulated))


@both_forms
def test_the_mean_is_a_flat_model_and_shares_nothing_with_the_members(mean_of: MeanOf) -> None:
    members = [flat_copy(member) for member in models(2)]
    before = [flat_copy(member) for member in members]
    mean = mean_of(members, [1.0, 2.0])
    buffer = as_flat(mean)
    assert buffer is not None
    buffer.zero_()
    for member, copy in zip(members, before, strict=True):
        assert_same_bits(member, copy)


def test_a_mean_that_grows_leaves_earlier_results_alone() -> None:
    first, second = models(2)
    mean = WeightedMean(torch.float32)
    mean.add(first, 1.0)
    earlier = mean.result()
    mean.add(second, 1.0)
    mean.result()
    assert_same_bits(earlier, first)


def test_at_most_eight_members_are_kept() -> None:
    mean, alive = WeightedMean(), []
    for member in models(20):
        copy = flat_copy(member)
        alive.append(weakref.ref(copy["bias"]))
        mean.add(copy, 1.0)
        del copy
        assert sum(reference() is not None for reference in alive) < 8


@both_forms
def test_integers_never_enter_an_average(mean_of: MeanOf) -> None:
    assert list(mean_of([{"w": torch.ones(1), "n": torch.tensor(3)}], [2.0])) == ["w"]


@both_forms
def test_models_without_floating_point_entries_have_an_empty_mean(mean_of: MeanOf) -> None:
    assert mean_of([{"n": torch.tensor(3)}] * 2, [2.0, 1.0]) == {}


@pytest.mark.parametrize(("members", "weights"), [([], []), ([{}], [1.0, 2.0])])
def test_weights_that_do_not_fit_the_members_are_rejected(members: list, weights: list) -> None:
    with pytest.raises(ValueError, match="weights"):
        weighted_mean(members, weights)


@both_forms
@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_rejected(mean_of: MeanOf, weight: float) -> None:
    with pytest.raises(ValueError, match="weights is"):
        mean_of([{}, {}], [1.0, weight])


@both_forms
def test_a_member_of_another_shape_is_rejected(mean_of: MeanOf) -> None:
    # Both would broadcast, and are of one size when flat.
    with pytest.raises(ValueError, match=r"w of a member has the shape \(4, 1\), the first member's \(2, 2\)"):
        mean_of([{"w": torch.ones(2, 2)}, {"w": torch.ones(4, 1)}], [1.0, 1.0])


def test_a_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no member"):
        WeightedMean().result()


def test_the_mean_of_what_is_present_is_over_those_members_that_have_it() -> None:
    one, two, three = (torch.tensor([value]) for value in (1.0, 4.0, 16.0))
    members = [{"a": one, "b": one}, {"b": two, "c": two}, {"b": three, "a": three, "n": torch.tensor(7)}]
    mean = mean_of_present(members, [1.0, 2.0, 3.0])
    assert {key: value.item() for key, value in mean.items()} == {"a": 49 / 4, "b": 57 / 6, "c": 4.0}
    assert list(mean) == ["a", "b", "c"]


def test_the_mean_of_what_is_present_is_the_weighted_mean_where_all_have_all() -> None:
    members, weights = models(5), weights_of(5)
    assert_same_bits(mean_of_present(members, weights), weighted_mean(members, weights))
    with pytest.raises(ValueError, match="1 weights for 2 members"):
        mean_of_present(members[:2], [1.0])


def test_the_mean_of_what_was_sent_is_over_those_members_that_sent_it() -> None:
    sent = [{"a": torch.tensor([1.0, 1.0, 0.0])}, {"a": torch.tensor([1.0, 0.0, 0.0])}]
    members = [{"a": torch.tensor([4.0, 4.0, 0.0]), "b": torch.ones(1)}, {"a": torch.tensor([8.0, 0.0, 0.0])}]
    mean = mean_of_present(members, [1.0, 3.0])
    found = mean_of_sent(mean, sent, [1.0, 3.0], {"a": torch.full((3,), 9.0)})
    assert {key: value.tolist() for key, value in found.items()} == {"a": [7.0, 4.0, 9.0], "b": [1.0]}


def test_an_entry_that_no_member_has_has_no_mean() -> None:
    assert mean_of_present([{}, {}], [1.0, 2.0]) == {}
