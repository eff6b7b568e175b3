import copy
from collections.abc import Iterator
from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.symmetries.permutations import Permutation, Spec, identity, permute, random_permutation
from fedsim.alignment.symmetries.spec import permutation_spec
from fedsim.analysis.barriers import barriers
from fedsim.models.architectures.gpt import gpt
from fedsim.models.architectures.mlp import mlp
from fedsim.models.architectures.resnet import resnet18
from fedsim.models.params import Params
from tests.alignment.cases import CASES, chain, draw

SHAPES = [(16, 64, 10), (16, 32, 32, 10), (10, 24, 24, 24, 5), (12, 48, 16, 4)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def equal(params: Params, others: Params) -> bool:
    return all(torch.equal(value, others[key]) for key, value in params.items())


def inner(params: Params, others: Params, without: frozenset[str] = frozenset()) -> float:
    return sum(float((value * others[key]).sum()) for key, value in params.items() if key not in without)


def orders(found: Permutation) -> dict[str, list[int]]:
    return {name: order.tolist() for name, order in found.items()}


def every_permutation(spec: Spec) -> Iterator[Permutation]:
    """Yield all permutations of plain symmetries."""
    choices = [list(permutations(range(size))) for size in spec.sizes.values()]
    for chosen in product(*choices):
        yield {name: torch.tensor(order) for name, order in zip(spec.sizes, chosen, strict=True)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_permuted_model_computes_the_same(case) -> None:
    params, inputs = draw(case.spec, 0), torch.from_numpy(rng(1).standard_normal((3, *case.shape)))
    permuted = permute(params, case.spec, random_permutation(case.spec, rng(2)))
    assert not equal(params, permuted)
    torch.testing.assert_close(case.run(permuted, inputs), case.run(params, inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_permuted_copy_of_an_mlp_is_recovered_exactly(shape: tuple[int, ...]) -> None:
    spec = chain(*shape)
    for seed in range(20):
        params = draw(spec, seed)
        permuted = permute(params, spec, random_permutation(spec, rng(100 + seed)))
        found = match_weights(spec, params, permuted, rng=rng(seed)).permutation
        assert equal(permute(permuted, spec, found), params)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_permuted_copy_is_recovered_exactly(case) -> None:
    for seed in range(10):
        params = draw(case.spec, seed)
        permuted = permute(params, case.spec, random_permutation(case.spec, rng(100 + seed)))
        found = match_weights(case.spec, params, permuted, rng=rng(seed)).permutation
        assert equal(permute(permuted, case.spec, found), params)


DERIVED = {
    "resnet18": (resnet18((3, 8, 8), 10, norm="batch", width=4), torch.zeros(2, 3, 8, 8)),
    "gpt": (gpt((8,), 20, depth=2, heads=2, width=16), torch.zeros(2, 8, dtype=torch.int64)),
}


@pytest.mark.parametrize(("model", "inputs"), DERIVED.values(), ids=DERIVED)
def test_a_permuted_copy_of_a_model_is_recovered_exactly(model: nn.Module, inputs: Tensor) -> None:
    spec = permutation_spec(model.eval(), inputs)
    for seed in range(5):
        params = draw(spec, seed)
        permuted = permute(params, spec, random_permutation(spec, rng(100 + seed)))
        found = match_weights(spec, params, permuted, rng=rng(seed)).permutation
        assert equal(permute(permuted, spec, found), params)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_objective_rises_from_what_the_start_gives_to_what_the_result_gives(case) -> None:
    for seed in range(5):
        reference, params = draw(case.spec, seed), draw(case.spec, 50 + seed)
        start = random_permutation(case.spec, rng(seed))
        found = match_weights(case.spec, reference, params, rng=rng(seed), start=start)
        assert (np.diff(found.objective) > 0).all()
        assert len(found.objective) > 1
        for permutation, objective in ((start, found.objective[0]), (found.permutation, found.objective[-1])):
            moved = permute(params, case.spec, permutation)
            assert objective == pytest.approx(inner(reference, moved, case.spec.statistics), rel=1e-10)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_result_is_where_another_search_ends_at_once(case) -> None:
    reference, params = draw(case.spec, 0), draw(case.spec, 1)
    found = match_weights(case.spec, reference, params, rng=rng(0))
    again = match_weights(case.spec, reference, params, rng=rng(1), start=found.permutation)
    assert len(again.objective) == 1
    assert orders(again.permutation) == orders(found.permutation)


def test_no_permutation_of_one_hidden_layer_is_better() -> None:
    spec = chain(3, 5, 2)
    for seed in range(5):
        reference, params = draw(spec, seed), draw(spec, 50 + seed)
        best = max(inner(reference, permute(params, spec, each)) for each in every_permutation(spec))
        assert match_weights(spec, reference, params, rng=rng(seed)).objective[-1] == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("spec", [chain(2, 3, 3, 2), CASES["recurrent"].spec], ids=["chain", "recurrent"])
def test_the_result_is_close_to_the_best_of_all_permutations(spec: Spec) -> None:
    reached = []
    for seed in range(2):
        reference, params = draw(spec, seed), draw(spec, 50 + seed)
        best = max(inner(reference, permute(params, spec, each)) for each in every_permutation(spec))
        found = match_weights(spec, reference, params, rng=rng(seed)).objective
        assert found[-1] <= best + 1e-9
        reached.append((found[-1] - found[0]) / (best - found[0]))
    assert np.mean(reached) > 0.8


def published(spec: Spec, reference: Params, params: Params, generator: np.random.Generator) -> dict[str, list[int]]:
    """Match the hidden layers of an MLP as the paper's algorithm 1 says, with permutation matrices."""
    hidden = list(spec.sizes)
    matrices = {0: torch.eye(reference["fc1.weight"].shape[1], dtype=torch.float64)}
    for layer, name in enumerate(hidden, start=1):
        matrices[layer] = torch.eye(spec.sizes[name], dtype=torch.float64)
    matrices[len(hidden) + 1] = torch.eye(reference[f"fc{len(hidden) + 1}.weight"].shape[0], dtype=torch.float64)
    progress = True
    while progress:
        progress = False
        for place in generator.permutation(len(hidden)):
            layer = int(place) + 1
            into, out = f"fc{layer}", f"fc{layer + 1}"
            gain = reference[f"{into}.weight"] @ matrices[layer - 1] @ params[f"{into}.weight"].T
            gain += torch.outer(reference[f"{into}.bias"], params[f"{into}.bias"])
            gain += reference[f"{out}.weight"].T @ matrices[layer + 1] @ params[f"{out}.weight"]
            rows, columns = linear_sum_assignment(gain.numpy(), maximize=True)
            found = torch.zeros_like(gain)
            found[rows, columns] = 1.0
            if (found * gain).sum() > (matrices[layer] * gain).sum() + 1e-12:
                matrices[layer], progress = found, True
    return {name: matrices[layer].argmax(1).tolist() for layer, name in enumerate(hidden, start=1)}


def test_an_mlp_is_matched_as_the_published_algorithm_does() -> None:
    spec = chain(6, 9, 8, 7, 3)
    for seed in range(6):
        reference, params = draw(spec, seed), draw(spec, 50 + seed)
        found = match_weights(spec, reference, params, rng=rng(seed), start=identity(spec)).permutation
        assert orders(found) == published(spec, reference, params, rng(seed))


def assigned(gain: Tensor) -> Tensor:
    return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])


def test_the_search_begins_at_that_end_of_an_mlp_where_more_is_known() -> None:
    for widths in ((30, 9, 8, 3), (3, 8, 9, 30)):
        spec = chain(*widths)
        reference, params = draw(spec, 0), draw(spec, 1)
        (a1, b1, a2, b2, a3, _), (c1, d1, c2, d2, c3, _) = reference.values(), params.values()
        first, second = a1 @ c1.T + b1.outer(d1), a3.T @ c3 + b2.outer(d2)
        if widths[0] == 30:
            fc1 = assigned(first)
            fc2 = assigned(second + a2 @ c2[:, fc1].T)
        else:
            fc2 = assigned(second)
            fc1 = assigned(first + a2.T @ c2[fc2])
        found = match_weights(spec, reference, params, rng=rng(), sweeps=0)
        assert orders(found.permutation) == {"fc1": fc1.tolist(), "fc2": fc2.tolist()}
        assert len(found.objective) == 2


def test_the_search_begins_where_units_are_if_that_is_better() -> None:
    spec = chain(2, 20, 20, 2)
    reference = draw(spec, 0)
    noise = draw(spec, 1)
    # What is sure is noise; what joins the hidden layers is not.
    params = {key: value if key == "fc2.weight" else noise[key] for key, value in reference.items()}
    found = match_weights(spec, reference, params, rng=rng(), sweeps=0)
    assert orders(found.permutation) == orders(identity(spec))


def test_a_part_of_a_model_is_matched_by_itself() -> None:
    spec = chain(9, 8, 7, 6, 3)
    params = draw(spec, 0)
    permuted = permute(params, spec, random_permutation(spec, rng(1)))
    part = {key: value for key, value in permuted.items() if key.startswith("fc1")}
    for reference, moved in ((params, part), ({key: params[key] for key in part}, permuted)):
        found = match_weights(spec, reference, moved, rng=rng(2)).permutation
        assert torch.equal(permuted["fc1.weight"][found["fc1"]], params["fc1.weight"])
        assert orders(found)["fc2"] == list(range(7))
        assert orders(found)["fc3"] == list(range(6))


def test_neither_statistics_nor_integers_say_which_units_belong_together() -> None:
    spec = CASES["convolution"].spec
    reference, params = draw(spec, 0), draw(spec, 1)
    expected = match_weights(spec, reference, params, rng=rng(0))
    for key in spec.statistics:
        reference[key], params[key] = 1e6 * reference[key], 1e6 * params[key]
    counts = {"norm.num_batches_tracked": torch.tensor(3)}
    found = match_weights(spec, reference | counts, params | counts, rng=rng(0))
    assert orders(found.permutation) == orders(expected.permutation)
    assert found.objective == expected.objective


def test_alike_units_stay_where_they_are() -> None:
    spec = chain(4, 9, 8, 3)
    params = draw(spec, 0)
    for key in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
        params[key][2:6] = 0.0
    assert orders(match_weights(spec, params, params, rng=rng(0)).permutation) == orders(identity(spec))


def test_a_search_without_sweeps_ends_at_its_start() -> None:
    spec = chain(4, 6, 5, 3)
    start = {"fc1": torch.tensor([3, 1, 2, 0, 4, 5])}
    found = match_weights(spec, draw(spec, 0), draw(spec, 1), rng=rng(0), start=start, sweeps=0)
    assert orders(found.permutation) == orders(identity(spec) | start)


def test_the_same_stream_gives_the_same_matching_and_nothing_is_changed() -> None:
    spec = chain(6, 20, 20, 20, 3)
    reference, params = draw(spec, 0), draw(spec, 1)
    found, again, other = (
        match_weights(spec, reference, params, rng=rng(seed), start=identity(spec)) for seed in (0, 0, 1)
    )
    assert found.objective == again.objective
    assert orders(found.permutation) == orders(again.permutation)
    assert orders(found.permutation) != orders(other.permutation)
    assert equal(params, draw(spec, 1))
    assert equal(reference, draw(spec, 0))


def test_entries_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    spec = chain(4, 6, 3)
    params = draw(spec, 0)
    with pytest.raises(ValueError, match=r"fc1.bias has the shape \(5,\), that of the architecture is \(6,\)"):
        match_weights(spec, params, params | {"fc1.bias": torch.zeros(5)}, rng=rng())
    with pytest.raises(ValueError, match=r"fc2.bias has an entry that is not finite"):
        match_weights(spec, params | {"fc2.bias": torch.tensor([0.0, torch.inf, 0.0])}, params, rng=rng())
    tied = params | {"tied.weight": params["fc2.weight"]}
    with pytest.raises(
        ValueError, match=r"^the spec has no entry 'tied\.weight'; pass those of fedsim\.models\.params\.state_of"
    ):
        match_weights(spec, tied, tied, rng=rng())
    with pytest.raises(ValueError, match=r"^sweeps = -1 must be at least 0; "):
        match_weights(spec, params, params, rng=rng(), sweeps=-1)


def test_the_barrier_between_trained_networks_of_two_initialisations_goes_away() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        centres, targets = torch.randn(10, 3, 16), torch.randint(0, 10, (1400,))
        inputs = centres[targets, torch.randint(0, 3, (1400,))] + 0.5 * torch.randn(1400, 16)
        states = []
        for _ in range(2):
            model = mlp((16,), 10, hidden=(128, 128, 128))
            optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
            for _ in range(5):
                for batch in torch.randperm(1000).split(50):
                    optimizer.zero_grad()
                    cross_entropy(model(inputs[batch]), targets[batch]).backward()
                    optimizer.step()
            states.append(copy.deepcopy(model.state_dict()))

    def barrier(pair: list[Params]) -> float:
        table = barriers(model, pair, inputs[1000:], targets[1000:], groups="full", against="pairs", ts=[0.5])
        return table["loss_mean_ends"].iloc[0]

    spec = chain(16, 128, 128, 128, 10)
    found = match_weights(spec, states[0], states[1], rng=rng(0)).permutation
    before, after = barrier(states), barrier([states[0], permute(states[1], spec, found)])
    assert before > 0.5
    assert after < 0.1 * before
