from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.merging.c2m3 import merge_c2m3
from fedsim.alignment.merging.merging import Merged, merge_hierarchically, merge_many, merge_to_universe
from fedsim.alignment.symmetries.permutations import Permutation, compose, permute, random_permutation
from fedsim.alignment.symmetries.spec import permutation_spec
from fedsim.models.averaging import weighted_mean
from fedsim.models.params import Params
from tests.alignment.cases import CASES, Case, chain, draw

MERGES = {"many": merge_many, "universe": merge_to_universe, "hierarchical": merge_hierarchically, "c2m3": merge_c2m3}
SPEC = chain(12, 16, 14, 4)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def close(params: Params, others: Params) -> None:
    assert params.keys() == others.keys()
    for key, value in params.items():
        torch.testing.assert_close(value, others[key], rtol=1e-12, atol=1e-12)


def orders(found: Permutation) -> dict[str, list[int]]:
    return {name: order.tolist() for name, order in found.items()}


def still(found: Permutation) -> bool:
    return all(torch.equal(order, torch.arange(len(order))) for order in found.values())


def copies(case: Case, count: int, seed: int = 0) -> tuple[Params, list[Params]]:
    params, generator = draw(case.spec, seed), rng(seed)
    return params, [permute(params, case.spec, random_permutation(case.spec, generator)) for _ in range(count)]


def kin(count: int, apart: float = 0.7) -> list[Params]:
    """Return models with something in common, their units in different places."""
    common, generator = draw(SPEC, 0), rng(1)
    own = [draw(SPEC, 1 + number) for number in range(count)]
    mixed = [{key: common[key] + apart * value for key, value in each.items()} for each in own]
    return [permute(each, SPEC, random_permutation(SPEC, generator)) for each in mixed]


def squared_distance(params: Params, others: Params) -> float:
    return sum(float((value - others[key]).square().sum()) for key, value in params.items())


@pytest.mark.slow
@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_permuted_copies_of_a_model_merge_into_it(case: Case, merge) -> None:
    for count in (1, 2, 4, 5):
        params, members = copies(case, count)
        without = merge(case.spec, members, rng=rng())
        close(without.params, members[0])
        assert without.spreads[-1] < 1e-12
        placed = merge(case.spec, members, rng=rng(), start=params)
        close(placed.params, params)
        for member, permutation in zip(members, placed.permutations, strict=True):
            close(permute(member, case.spec, permutation), params)


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
@pytest.mark.parametrize("start", [None, draw(SPEC, 9)], ids=["own places", "start's places"])
def test_a_merge_is_the_weighted_mean_of_the_permuted_members(merge, start: Params | None) -> None:
    members, weights = kin(5), [1.0, 4.0, 2.0, 2.0, 3.0]
    merged = merge(SPEC, members, weights=weights, rng=rng(), start=start)
    moved = [permute(member, SPEC, each) for member, each in zip(members, merged.permutations, strict=True)]
    mean = {key: sum(w / 12 * each[key] for w, each in zip(weights, moved, strict=True)) for key in members[0]}
    close(merged.params, mean)
    assert still(merged.permutations[0]) == (start is None)
    if start is not None:
        assert still(match_weights(SPEC, start, merged.params, rng=rng(5)).permutation)
    spread = sum(w / 12 * squared_distance(each, mean) for w, each in zip(weights, moved, strict=True))
    assert merged.spreads[-1] == pytest.approx(spread, rel=1e-12)


@pytest.mark.parametrize("merge", [merge_many, merge_to_universe])
def test_the_distances_between_members_only_fall(merge) -> None:
    for weights in (None, [1.0, 5.0, 2.0, 1.0, 3.0, 1.0]):
        members = kin(6, apart=2.0)
        merged = [merge(SPEC, members, weights=weights, rng=rng(), sweeps=sweeps) for sweeps in range(1, 5)]
        shares = np.ones(6) / 6 if weights is None else np.array(weights) / sum(weights)
        distances = []
        for each in merged:
            moved = [permute(member, SPEC, found) for member, found in zip(members, each.permutations, strict=True)]
            pairs = combinations(range(6), 2)
            distances.append(sum(shares[a] * shares[b] * squared_distance(moved[a], moved[b]) for a, b in pairs))
        before, *after = merged[-1].spreads
        np.testing.assert_allclose(distances[: len(after)], after, rtol=1e-10)
        assert (np.diff([before, *distances]) <= 1e-9).all()
        assert distances[-1] < before


def test_a_merge_of_many_ends_where_no_member_fits_the_mean_of_the_others_better() -> None:
    members = kin(5, apart=2.0)
    merged = merge_many(SPEC, members, rng=rng())
    moved = [permute(member, SPEC, each) for member, each in zip(members, merged.permutations, strict=True)]
    for place, member in enumerate(moved):
        others = weighted_mean([each for each in moved if each is not member], [1.0] * 4)
        assert len(match_weights(SPEC, others, moved[place], rng=rng(place)).objective) == 1


def test_a_universe_ends_where_no_member_fits_it_better() -> None:
    members = kin(8, apart=2.0)
    merged = merge_to_universe(SPEC, members, rng=rng())
    for member, permutation in zip(members, merged.permutations, strict=True):
        assert len(match_weights(SPEC, merged.params, member, rng=rng(), start=permutation).objective) == 1


def around(pairs: list[Permutation]) -> Permutation:
    """Return what becomes of units that go from the first model to the second, to the third, and back."""
    return compose(compose(pairs[0], pairs[1]), pairs[2])


def test_ways_through_a_merged_model_agree_and_those_of_pairs_do_not() -> None:
    members = kin(3, apart=2.0)
    matched = [match_weights(SPEC, members[b], members[a], rng=rng()).permutation for a, b in ((0, 1), (1, 2), (2, 0))]
    assert not still(around(matched))
    for merge in MERGES.values():
        merged = merge(SPEC, members, rng=rng())
        assert still(around([merged.between(0, 1), merged.between(1, 2), merged.between(2, 0)]))
        via = permute(members[2], SPEC, merged.between(2, 1))
        close(permute(via, SPEC, merged.permutations[1]), permute(members[2], SPEC, merged.permutations[2]))


def test_two_models_merge_as_they_are_matched() -> None:
    members = kin(2)
    found = match_weights(SPEC, *members, rng=rng()).permutation
    mean = weighted_mean([members[0], permute(members[1], SPEC, found)], [1.0, 3.0])
    for merge in MERGES.values():
        close(merge(SPEC, members, weights=[1.0, 3.0], rng=rng()).params, mean)


def plain_tree(members: list[Params], weights: list[float], generator: np.random.Generator) -> Params:
    """Merge neighbours, weighing each mean by what is in it."""
    nodes = list(zip(members, weights, strict=True))
    while len(nodes) > 1:
        following = []
        for (a, p), (b, q) in zip(nodes[::2], nodes[1::2], strict=False):
            moved = permute(b, SPEC, match_weights(SPEC, a, b, rng=generator).permutation)
            following.append(({key: (p * a[key] + q * moved[key]) / (p + q) for key in a}, p + q))
        nodes = following + nodes[len(following) * 2 :]
    return nodes[0][0]


@pytest.mark.parametrize("count", [2, 3, 4, 6, 7])
def test_a_hierarchical_merge_is_a_tree_of_pairs(count: int) -> None:
    members, weights = kin(count, apart=2.0), [1.0, 2.0, 4.0, 8.0, 3.0, 5.0, 7.0][:count]
    merged = merge_hierarchically(SPEC, members, weights=weights, rng=rng())
    close(merged.params, plain_tree(members, weights, rng()))


def test_the_nearest_models_make_the_first_pairs() -> None:
    # Members 0 and 3 are nearly one model, 1 and 2 another; neighbours are strangers.
    noisy = [
        {key: value + 1e-3 * draw(SPEC, 90 + number)[key] for key, value in draw(SPEC, seed).items()}
        for number, seed in enumerate((0, 8, 8, 0, 7))
    ]
    generator = rng(2)
    moved = [permute(member, SPEC, random_permutation(SPEC, generator)) for member in noisy]
    merged = merge_hierarchically(SPEC, moved, rng=rng(), order="nearest")
    for a, b in ((0, 3), (1, 2)):
        alike = match_weights(SPEC, moved[a], moved[b], rng=rng()).permutation
        assert orders(merged.between(b, a)) == orders(alike)
    given = merge_hierarchically(SPEC, moved, rng=rng())
    assert merged.spreads[-1] < given.spreads[-1]


def test_random_pairs_are_drawn_and_the_first_member_stays() -> None:
    # With one hidden layer matching itself draws nothing.
    spec = chain(12, 16, 4)
    members = [draw(spec, seed) for seed in range(6)]
    merged = [merge_hierarchically(spec, members, rng=rng(seed), order="random") for seed in (0, 0, 1)]
    assert merged[0].spreads == merged[1].spreads != merged[2].spreads
    assert all(still(each.permutations[0]) for each in merged)
    given = [merge_hierarchically(spec, members, rng=rng(seed)) for seed in (0, 1)]
    assert given[0].spreads == given[1].spreads


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_integers_are_the_first_members_and_statistics_move_and_are_averaged(merge) -> None:
    case = CASES["convolution"]
    _, members = copies(case, 3)
    for number, member in enumerate(members):
        member["norm.num_batches_tracked"] = torch.tensor(number)
    merged = merge(case.spec, members, weights=[1.0, 2.0, 3.0], rng=rng())
    close(merged.params, members[0])
    assert list(merged.params) == list(members[0])


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_parts_of_models_merge_and_orders_that_they_lack_stay(merge) -> None:
    params, members = copies(Case(SPEC, lambda params, inputs: inputs, ()), 3)
    parts = [{key: value for key, value in member.items() if key.startswith("fc1")} for member in members]
    merged = merge(SPEC, parts, rng=rng(), start=params)
    close(merged.params, {key: params[key] for key in parts[0]})
    for permutation in merged.permutations:
        assert orders(permutation)["fc2"] == list(range(14))


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_the_same_stream_gives_the_same_merge_and_members_are_not_changed(merge) -> None:
    members = kin(4, apart=2.0)
    first, second = (merge(SPEC, members, rng=rng(3)) for _ in range(2))
    for key, value in first.params.items():
        assert torch.equal(value, second.params[key])
    for member, same in zip(members, kin(4, apart=2.0), strict=True):
        assert all(torch.equal(member[key], same[key]) for key in member)


def test_members_keep_their_precision() -> None:
    members = [{key: value.float() for key, value in member.items()} for member in kin(3)]
    merged: Merged = merge_many(SPEC, members, rng=rng())
    assert {value.dtype for value in merged.params.values()} == {torch.float32}


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_what_cannot_be_merged_is_refused(merge) -> None:
    members = kin(2)
    with pytest.raises(ValueError, match="there is no member to merge"):
        merge(SPEC, [], rng=rng())
    with pytest.raises(ValueError, match=r"members differ in entries, e\.g\. fc2\.bias"):
        merge(SPEC, [members[0], {k: v for k, v in members[1].items() if k != "fc2.bias"}], rng=rng())
    for weights in ([1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="positive"):
            merge(SPEC, members, weights=weights, rng=rng())
    tied = [member | {"tied.weight": member["fc2.weight"]} for member in members]
    with pytest.raises(
        ValueError, match=r"^the spec has no entry 'tied\.weight'; pass those of fedsim\.models\.params\.state_of"
    ):
        merge(SPEC, tied, rng=rng())


@pytest.mark.parametrize("merge", [merge_many, merge_to_universe])
def test_a_merge_without_sweeps_is_refused(merge) -> None:
    with pytest.raises(ValueError, match=r"^sweeps = 0 must be at least 1; "):
        merge(SPEC, kin(2), rng=rng(), sweeps=0)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order = 'best' must be one of given, nearest, random"):
        merge_hierarchically(SPEC, kin(1), rng=rng(), order="best")  # type: ignore[arg-type]


class Masked(nn.Module):
    """A causal mask added to scores, as a buffer of the state."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.embed, self.query, self.inner, self.head = nn.Embedding(9, 6), *map(nn.Linear, (6, 6, 8), (6, 8, 3))
        self.register_buffer("mask", torch.full((5, 5), value).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        scores = self.query(x) @ x.mT + self.mask
        return self.head((scores.softmax(-1) @ self.inner(x)).relu().mean(1))


@pytest.mark.parametrize("value", [-1e9, torch.finfo(torch.float32).min, -torch.inf])
@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_a_mask_however_large_does_not_hide_the_units(merge, value: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, tokens = Masked(value), torch.randint(0, 9, (3, 5))
    spec, state = permutation_spec(model, tokens), model.state_dict()
    hidden = random_permutation(spec, rng(1))
    matching = match_weights(spec, state, permute(state, spec, hidden), rng=rng(2))
    assert hidden.keys() == {"embed", "inner"}
    assert still(compose(hidden, matching.permutation))
    merged = merge(spec, [state, permute(state, spec, hidden)], rng=rng(3))
    assert all(torch.equal(merged.params[key], entry) for key, entry in state.items())
