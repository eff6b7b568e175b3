"""Mixtures of experts are matched in two levels: experts, and the hidden units in each."""

import copy
from functools import cache, partial
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.alignment.matching.activation_matching import match_activations
from fedsim.alignment.matching.expert_matching import match_experts
from fedsim.alignment.matching.weight_matching import match_weights
from fedsim.alignment.merging.merging import merge_many
from fedsim.alignment.symmetries.checks import check_spec
from fedsim.alignment.symmetries.norms import absorb_norms
from fedsim.alignment.symmetries.permutations import identity, invert, permute, random_permutation
from fedsim.alignment.symmetries.rotation_spec import rotation_spec
from fedsim.alignment.symmetries.spec import Derivation, derive, permutation_spec
from fedsim.analysis import barriers
from fedsim.models.architectures.experts import MixtureOfExperts
from fedsim.models.params import Params
from fedsim.seeds import rng
from tests.alignment.cases import draw
from tests.models.test_architectures import batch
from tests.models.test_experts import KINDS, SHAPES, build, every_kind, every_mixture

EXPERTS, HIDDEN, WIDTH = 4, 3, 5
COSTS = ("weights", "gate", "gram")
SHARED = "moe.shared_experts.up"


@cache
def transformer(name: str, kind: str) -> tuple[Derivation, Tensor]:
    """Return what is derived of a small transformer in float64, and inputs."""
    inputs = batch(SHAPES[name], 6)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        model = copy.deepcopy(build(name, kind)).double()
        return derive(model, inputs), inputs


class Lone(nn.Module):
    """A mixture between inputs and outputs that stay in place."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        settings = {"top_k": EXPERTS, "num_shared_experts": 0, **KINDS[kind]}
        self.moe = MixtureOfExperts(WIDTH, HIDDEN, EXPERTS, **settings, activation=nn.GELU(), dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x)


@cache
def lone(kind: str) -> Derivation:
    model = Lone(kind).double()
    return derive(model, torch.randn(3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def translated(params: Params, seed: int) -> Params:
    """Add one row to all rows of each gate, and one number to all biases, far larger than they are."""
    generator = torch.Generator().manual_seed(seed)
    added = {
        key: value + 30 * torch.randn(value.shape[1:], generator=generator, dtype=value.dtype)
        for key, value in params.items()
        if ".gate." in f".{key}"
    }
    return params | added


def equal(params: Params, others: Params) -> bool:
    return all(torch.equal(value, others[key]) for key, value in params.items())


@every_mixture
def test_random_permutations_leave_the_logits_equal_and_their_inverse_restores_the_bits(name: str, kind: str) -> None:
    derivation, inputs = transformer(name, kind)
    params = {key: value / 4 for key, value in draw(derivation.spec, 0).items()}
    check_spec(derivation.model, params, derivation.spec, inputs, rng(0), 1e-10)
    drawn = random_permutation(derivation.spec, rng(1))
    moved = permute(params, derivation.spec, drawn)
    assert not torch.equal(moved[key := next(iter(derivation.spec.gates))], params[key])
    assert equal(params, permute(moved, derivation.spec, invert(drawn)))


@every_mixture
def test_experts_and_their_units_are_one_symmetry_next_to_those_of_the_backbone(name: str, kind: str) -> None:
    spec = transformer(name, kind)[0].spec
    path = "h.1.mlp" if name == "gpt" else "encoder.layers.encoder_layer_1.mlp"
    found = {tuple(each.widths): (each.blocks, *each.widths.values()) for each in spec.symmetries}
    assert found[f"{path}.gate", f"{path}.experts.up"] == (4, 1, 6)
    assert ((f"{path}.shared_experts.up",) in found) == ("shared" in kind)
    assert spec.gates == {f"{path}.gate.weight", f"{path}.gate.bias"}


@every_mixture
def test_a_permuted_and_translated_copy_of_a_whole_model_is_recovered_exactly(name: str, kind: str) -> None:
    spec = transformer(name, kind)[0].spec
    for seed in range(3):
        params = draw(spec, seed)
        permuted = permute(params, spec, random_permutation(spec, rng(100 + seed)))
        found = match_weights(spec, params, translated(permuted, seed), rng=rng(seed)).permutation
        assert equal(params, permute(permuted, spec, found))


@pytest.mark.parametrize("by", COSTS)
@every_kind
def test_each_cost_recovers_experts_and_their_units(kind: str, by: Any) -> None:
    spec = lone(kind).spec
    for seed in range(5):
        params = draw(spec, seed)
        drawn = random_permutation(spec, rng(seed))
        assert drawn.keys() == {"moe.gate", "moe.experts.up"} | ({SHARED} if "shared" in kind else set())
        permuted = permute(params, spec, drawn)
        found = match_experts(spec, params, translated(permuted, seed), by=by)
        assert equal(params, permute(permuted, spec, found))
        assert found.keys() == spec.sizes.keys()
        inside = drawn | {"moe.gate": torch.arange(EXPERTS), "moe.experts.up": _within(rng(seed), EXPERTS, HIDDEN)}
        shuffled = permute(params, spec, inside)
        assert equal(params, permute(shuffled, spec, match_experts(spec, params, shuffled, by="units")))
        start = {name: order.roll(1) for name, order in found.items() if "gate" in name}
        units = match_experts(spec, params, permuted, by="units", start=start)
        assert units["moe.gate"].tolist() == start["moe.gate"].tolist()


@pytest.mark.parametrize("by", COSTS)
@every_mixture
def test_mixtures_are_recovered_on_a_backbone_that_stays_in_place(name: str, kind: str, by: Any) -> None:
    spec = transformer(name, kind)[0].spec
    params, drawn = draw(spec, 0), random_permutation(spec, rng(1))
    own = ("mlp.gate", "mlp.experts.up", "mlp.shared_experts.up")
    drawn = {order: drawn[order] for order in drawn if order.endswith(own)}
    assert len(drawn) == (3 if "shared" in kind else 2)
    permuted = permute(params, spec, drawn)
    assert equal(params, permute(permuted, spec, match_experts(spec, params, translated(permuted, 2), by=by)))
    found = match_experts(spec, params, draw(spec, 3), by=by)
    place = identity(spec)
    assert {order for order in found if not torch.equal(found[order], place[order])} <= drawn.keys() < found.keys()


@pytest.mark.parametrize("by", [*COSTS, "units"])
def test_no_order_of_the_shared_experts_units_is_better(by: Any) -> None:
    spec = lone("top 2 and 1 shared").spec
    for seed in range(4):
        reference, params = draw(spec, seed), draw(spec, 50 + seed)
        best = max(permutations(range(HIDDEN)), key=partial(gain_of_shared, reference, params))
        assert match_experts(spec, reference, params, by=by)[SHARED].tolist() == list(best)


def gain_of_shared(reference: Params, params: Params, order: tuple[int, ...]) -> float:
    """Return the inner product of two networks of shared experts, the second one's units in an order."""
    moved = {
        f"{SHARED}.weight": params[f"{SHARED}.weight"][list(order)],
        f"{SHARED}.bias": params[f"{SHARED}.bias"][list(order)],
        (down := "moe.shared_experts.down.weight"): params[down][:, list(order)],
    }
    return sum(float((reference[key] * value).sum()) for key, value in moved.items())


def _within(generator: np.random.Generator, blocks: int, width: int) -> Tensor:
    return torch.cat([torch.from_numpy(generator.permutation(width)) + i * width for i in range(blocks)])


def parts(params: Params) -> dict[str, Tensor]:
    """Return the paper's tensors, by expert: A, u, B, v, and the centred W and b."""
    state = {key.removeprefix("moe."): value for key, value in params.items()}
    weight, bias = state["gate.weight"], state["gate.bias"]
    return {
        "A": state["experts.up.weight"].view(EXPERTS, HIDDEN, WIDTH),
        "u": state["experts.up.bias"].view(EXPERTS, HIDDEN, 1),
        "B": state["experts.down.weight"].view(EXPERTS, HIDDEN, WIDTH).mT,
        "v": state["experts.down.bias"].view(EXPERTS, WIDTH, 1),
        "W": weight - weight.mean(0),
        "b": bias - bias.mean(),
    }


def gain(a: dict[str, Tensor], b: dict[str, Tensor], i: int, j: int, order: tuple[int, ...]) -> float:
    """Return the inner product of two experts with all that belongs to them, the second one's units in an order."""
    units = list(order)
    products = [a["A"][i] * b["A"][j][units], a["u"][i] * b["u"][j][units], a["B"][i] * b["B"][j][:, units]]
    products += [a["v"][i] * b["v"][j], a["W"][i] * b["W"][j], a["b"][i] * b["b"][j]]
    return sum(float(each.sum()) for each in products)


@every_kind
def test_no_order_of_experts_and_units_is_better(kind: str) -> None:
    """All 4! orders of experts, and for each pair all 3! orders of units, as there are no others to interact with."""
    spec = lone(kind).spec
    for seed in range(4):
        reference, params = draw(spec, seed), draw(spec, 50 + seed)
        a, b = parts(reference), parts(params)
        pairs = product(range(EXPERTS), repeat=2)
        best = {
            (i, j): max((gain(a, b, i, j, order), order) for order in permutations(range(HIDDEN))) for i, j in pairs
        }
        totals = {tau: sum(best[i, j][0] for i, j in enumerate(tau)) for tau in permutations(range(EXPERTS))}
        tau = max(totals, key=totals.__getitem__)
        units = [HIDDEN * j + unit for i, j in enumerate(tau) for unit in best[i, j][1]]
        weights = match_weights(spec, reference, params, rng=rng(seed)).permutation
        for orders in (match_experts(spec, reference, params), weights):
            assert (orders["moe.gate"].tolist(), orders["moe.experts.up"].tolist()) == (list(tau), units)
        alone = {key: value for key, value in reference.items() if "shared" not in key}
        objective = match_weights(spec, alone, params, rng=rng(seed)).objective[-1]
        assert objective == pytest.approx(totals[tau], rel=1e-12)


def distance(a: dict[str, Tensor], b: dict[str, Tensor], i: int, j: int, by: str) -> float:
    """Return the paper's cost of two experts."""
    if by == "gate":
        return float(((a["W"][i] - b["W"][j]) ** 2).sum() + (a["b"][i] - b["b"][j]) ** 2) ** 0.5
    first, other = (torch.cat([each["A"][k], each["u"][k]], 1) for each, k in ((a, i), (b, j)))
    last, others = (torch.cat([each["B"][k], each["v"][k]], 1) for each, k in ((a, i), (b, j)))
    inner, outer = first.T @ first - other.T @ other, last @ last.T - others @ others.T
    return float((inner**2).sum() + (outer**2).sum()) ** 0.5


@pytest.mark.parametrize("by", ["gate", "gram"])
@every_kind
def test_gates_and_gram_matrices_assign_experts_as_the_papers_costs_do(kind: str, by: Any) -> None:
    spec = lone(kind).spec
    for seed in range(6):
        reference, params = draw(spec, seed), translated(draw(spec, 50 + seed), seed)
        a, b = parts(reference), parts(params)
        tau = min(
            permutations(range(EXPERTS)),
            key=lambda tau: sum(distance(a, b, i, j, by) for i, j in enumerate(tau)),
        )
        found = match_experts(spec, reference, params, by=by)
        assert found["moe.gate"].tolist() == list(tau)
        for i, j in enumerate(tau):
            best = max(permutations(range(HIDDEN)), key=lambda order: gain(a, b, i, j, order))
            units = found["moe.experts.up"].view(EXPERTS, HIDDEN)[i]
            assert units.tolist() == [HIDDEN * j + unit for unit in best]


@every_mixture
def test_a_translated_gate_leaves_the_barrier_unchanged_along_the_whole_path(name: str, kind: str) -> None:
    derivation, inputs = transformer(name, kind)
    model, spec = derivation.model, derivation.spec
    first, second = ({key: value / 3 for key, value in draw(spec, seed).items()} for seed in (0, 1))
    targets = model(inputs).argmax(1)
    ts = tuple(t / 10 for t in range(11))
    tables = [
        barriers(model, pair, inputs, targets, groups=["full", "layers"], against="pairs", ts=ts)
        for pair in ([first, second], [first, translated(second, 3)])
    ]
    measured = [column for column in map(str, tables[0]) if column.startswith("loss")]
    assert tables[0]["loss_mean_ends"].max() > 0.01
    without = [table[~table["group"].str.contains("gate")] for table in tables]
    assert {len(table) for table in without} == {11 * 2 * (len(tables[0]["group"].unique()) - 1)}
    np.testing.assert_allclose(without[0][measured], without[1][measured], rtol=0, atol=1e-12)
    # The gate by itself is mixed whole too: its translation is a translation at every t.
    gates = [table[table["group"].str.contains("gate")] for table in tables]
    np.testing.assert_allclose(gates[0][measured], gates[1][measured], rtol=0, atol=1e-12)


def test_merged_copies_that_are_permuted_and_translated_compute_what_each_does() -> None:
    derivation, inputs = transformer("gpt", "top 2 and 1 shared")
    spec = derivation.spec
    params = {key: value / 4 for key, value in draw(spec, 0).items()}
    copies = [translated(permute(params, spec, random_permutation(spec, rng(seed))), seed) for seed in range(3)]
    merged = merge_many(spec, copies, rng=rng(0))
    assert merged.spreads[-1] < 1e-20 * sum(float(value.square().sum()) for value in params.values())
    expected = derivation.run(params, inputs, lambda node, value: None)
    found = derivation.run(merged.params, inputs, lambda node, value: None)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_copy_whose_residual_stream_is_rotated_and_whose_gates_are_translated_is_recovered() -> None:
    model = copy.deepcopy(build("gpt", "top 2 and 1 shared", tied=False)).double()
    spec = rotation_spec(model, batch(SHAPES["gpt"]))
    assert any(each.rotations and "wte" in each.widths for each in spec.symmetries)
    params = absorb_norms({key: value / 3 for key, value in draw(spec, 0).items()}, spec.norms)
    moved = translated(permute(params, spec, random_permutation(spec, rng(1))), 2)
    back = permute(moved, spec, match_weights(spec, params, moved, rng=rng(0)).permutation)
    for key in params.keys() - spec.gates:
        torch.testing.assert_close(back[key], params[key], rtol=0, atol=1e-9)
    for key in spec.gates:
        centred, expected = (value[key] - value[key].mean(0) for value in (back, params))
        torch.testing.assert_close(centred, expected, rtol=0, atol=1e-9)


def test_activations_recover_experts_and_their_units() -> None:
    derivation, inputs = transformer("vit", "dense")
    spec = derivation.spec
    inputs = torch.randn(40, *inputs.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    params = {key: value / 2 for key, value in draw(spec, 0).items()}
    permuted = permute(params, spec, random_permutation(spec, rng(1)))
    path = "encoder.layers.encoder_layer_1.mlp"
    found = permute(permuted, spec, match_activations(derivation, params, permuted, inputs))
    for key in ("gate.bias", "experts.up.bias"):
        assert torch.equal(found[f"{path}.{key}"], params[f"{path}.{key}"])


@pytest.mark.parametrize("frozen", ["gate", "gate.weight"])
@every_kind
def test_frozen_gates_keep_experts_in_place_and_units_are_matched_within_each(kind: str, frozen: str) -> None:
    model = Lone(kind).double()
    for name, value in model.moe.named_parameters():
        value.requires_grad_(not name.startswith(frozen))
    spec = permutation_spec(model, torch.randn(3, WIDTH, dtype=torch.float64))
    experts = [(HIDDEN, {f"moe.experts.up:{i}": 1}) for i in range(EXPERTS)]
    found = [(each.blocks, dict(each.widths)) for each in spec.symmetries]
    assert [each for each in found if SHARED not in each[1]] == experts
    assert spec.gates == {"moe.gate.weight", "moe.gate.bias"}
    params = draw(spec, 0)
    permuted = permute(params, spec, random_permutation(spec, rng(1)))
    other = draw(spec, 2)
    best = match_weights(spec, params, other, rng=rng(0)).permutation
    for by in (*COSTS, "units"):
        assert equal(params, permute(permuted, spec, match_experts(spec, params, permuted, by=by)))
        assert equal(match_experts(spec, params, other, by=by), best)


def test_a_model_without_experts_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    spec = permutation_spec(model, torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"^the model has no experts that can be matched; match by weights, or set"):
        match_experts(spec, draw(spec, 0), draw(spec, 1))


def test_a_cost_that_is_unknown_or_lacks_its_entries_is_named() -> None:
    spec = lone("dense").spec
    without = {key: value for key, value in draw(spec, 0).items() if "gate" not in key}
    with pytest.raises(ValueError, match=r"^by = 'gate': the models have no such entries in common; give whole models"):
        match_experts(spec, without, draw(spec, 1), by="gate")
    assert match_experts(spec, without, draw(spec, 1)).keys() == spec.sizes.keys()
    with pytest.raises(ValueError, match=r"^by = 'grams' must be one of weights, gate, gram, units$"):
        match_experts(spec, draw(spec, 0), draw(spec, 1), by="grams")  # type: ignore[arg-type]
