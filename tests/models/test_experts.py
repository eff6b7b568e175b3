import copy
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from fedsim.models.architectures import MODELS
from fedsim.models.architectures.experts import MixtureOfExperts, TopKSoftmax, mixtures
from fedsim.models.layers import Layers
from fedsim.models.params import state_of
from fedsim.training import SGD
from tests.analysis.test_mixed_models import assert_agrees
from tests.models.test_architectures import CLASSES, batch, number_of_parameters, shapes
from tests.training.test_cohort import check_alike, tasks_of

WIDTH, HIDDEN, EXPERTS = 8, 6, 4
KINDS: dict[str, dict[str, int]] = {
    "dense": {},
    "top 2": {"top_k": 2},
    "top 2 and 1 shared": {"top_k": 2, "num_shared_experts": 1},
}
SIZES = {"depth": 2, "heads": 2, "width": WIDTH, "num_experts": EXPERTS, "expert_width": HIDDEN}
SHAPES = {"vit": (1, 8, 8), "gpt": (9,)}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_mixture = pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in SHAPES for kind in KINDS])


@cache
def build(name: str, kind: str, **options: Any) -> nn.Module:
    """Build a small transformer whose last block has experts; no test changes it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name](SHAPES[name], CLASSES, **{**SIZES, "moe_blocks": (-1,), **KINDS[kind], **options}).eval()


def block(kind: str, seed: int = 0) -> MixtureOfExperts:
    """Return a block in float64 whose entries all differ."""
    settings = {"top_k": EXPERTS, "num_shared_experts": 0, **KINDS[kind]}
    generator = torch.Generator().manual_seed(seed)
    found = MixtureOfExperts(WIDTH, HIDDEN, EXPERTS, **settings, activation=nn.GELU(), dropout=0.0).double()
    for parameter in found.parameters():
        nn.init.normal_(parameter, generator=generator)
    return found


def by_hand(moe: MixtureOfExperts, x: Tensor, k: int) -> Tensor:
    """Compute a token's output expert by expert, only those with the largest scores."""
    state = moe.state_dict()
    scores = state["gate.weight"] @ x + state["gate.bias"]
    chosen = sorted(range(EXPERTS), key=lambda i: -float(scores[i]))[:k]
    weights = torch.stack([scores[i].exp() for i in chosen])
    total = torch.zeros(WIDTH, dtype=x.dtype)
    for i, weight in zip(chosen, weights / weights.sum(), strict=True):
        rows = slice(i * HIDDEN, (i + 1) * HIDDEN)
        hidden = gelu(state["experts.up.weight"][rows] @ x + state["experts.up.bias"][rows])
        total += weight * (hidden @ state["experts.down.weight"][rows] + state["experts.down.bias"][i])
    if "shared_experts.up.weight" in state:
        hidden = gelu(state["shared_experts.up.weight"] @ x + state["shared_experts.up.bias"])
        total += state["shared_experts.down.weight"] @ hidden + state["shared_experts.down.bias"]
    return total


@every_kind
def test_a_mixture_is_what_its_experts_give_one_by_one(kind: str) -> None:
    moe = block(kind)
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([by_hand(moe, token, KINDS[kind].get("top_k", EXPERTS)) for token in x.flatten(0, 1)])
    torch.testing.assert_close(moe(x).flatten(0, 1), expected, rtol=1e-12, atol=1e-12)


def test_the_gate_is_zero_outside_of_the_largest_scores_and_has_the_gradient_of_a_softmax() -> None:
    scores = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for k in (2, 3, 4):
        gates = TopKSoftmax(k)(scores)
        assert ((gates > 0).sum(-1) == k).all()
        torch.testing.assert_close(gates.sum(-1), torch.ones(6, dtype=torch.float64))
        assert (gates.argsort(-1, descending=True)[:, :k] == scores.argsort(-1, descending=True)[:, :k]).all()
        assert torch.autograd.gradcheck(TopKSoftmax(k), scores)
    ties = torch.tensor([[1.0, 3.0, 1.0, 0.0]])
    torch.testing.assert_close(TopKSoftmax(2)(ties), ties[:, :3].softmax(-1)[:, [0, 1, 2, 2]] * (ties > 0))


@every_mixture
def test_what_is_added_to_all_scores_changes_nothing(name: str, kind: str) -> None:
    model = copy.deepcopy(build(name, kind)).double()
    inputs = batch(SHAPES[name], 4)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    before = model(inputs)
    (moe,) = (module for module in model.modules() if isinstance(module, MixtureOfExperts))
    with torch.no_grad():
        moe.gate.weight += torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
        moe.gate.bias += 3.0
    torch.testing.assert_close(model(inputs), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("blocks", "mixed"), [((), {0, 1, 2}), ((0,), {0}), ((-1,), {2}), ((0, -2), {0, 1})])
def test_the_blocks_with_experts_are_those_that_are_named(blocks: tuple[int, ...], mixed: set[int]) -> None:
    for name, path in (("vit", "encoder.layers.encoder_layer_{}.mlp"), ("gpt", "h.{}.mlp")):
        model = MODELS[name](SHAPES[name], CLASSES, **{**SIZES, "depth": 3, "moe_blocks": blocks})
        found = {i for i in range(3) if isinstance(model.get_submodule(path.format(i)), MixtureOfExperts)}
        assert found == mixed


@every_mixture
def test_the_number_of_parameters_is_that_of_its_parts(name: str, kind: str) -> None:
    mlp = {"mlp": 11} if name == "vit" else {}
    dense = MODELS[name](SHAPES[name], CLASSES, depth=2, heads=2, width=WIDTH, **mlp)
    hidden = 11 if name == "vit" else 4 * WIDTH
    one = 2 * WIDTH * HIDDEN + HIDDEN + WIDTH
    shared = KINDS[kind].get("num_shared_experts", 0)
    added = EXPERTS * (one + WIDTH + 1) + shared * one - (2 * WIDTH * hidden + hidden + WIDTH)
    assert number_of_parameters(build(name, kind, **mlp)) == number_of_parameters(dense) + added


def test_tensors_of_experts_are_stacked_on_axis_0_and_their_modules_are_layers() -> None:
    model = build("gpt", "top 2 and 1 shared")
    own = {key.removeprefix("h.1.mlp."): tuple(shape) for key, shape in shapes(model).items() if "h.1.mlp" in key}
    assert own == {
        "gate.weight": (EXPERTS, WIDTH),
        "gate.bias": (EXPERTS,),
        "experts.up.weight": (EXPERTS * HIDDEN, WIDTH),
        "experts.up.bias": (EXPERTS * HIDDEN,),
        "experts.down.weight": (EXPERTS * HIDDEN, WIDTH),
        "experts.down.bias": (EXPERTS, WIDTH),
        "shared_experts.up.weight": (HIDDEN, WIDTH),
        "shared_experts.up.bias": (HIDDEN,),
        "shared_experts.down.weight": (WIDTH, HIDDEN),
        "shared_experts.down.bias": (WIDTH,),
    }
    parts = ("gate", "experts.up", "experts.down", "shared_experts.up", "shared_experts.down")
    assert tuple(Layers.of(model).group("h.1.mlp.*")) == tuple(f"h.1.mlp.{part}" for part in parts)


def test_models_without_experts_are_drawn_as_before_and_the_other_blocks_are_those_of_the_dense_model() -> None:
    states = []
    for options in ({}, {"num_experts": 2, "moe_blocks": (1,)}):
        torch.manual_seed(0)
        states.append(state_of(MODELS["vit"]((1, 8, 8), CLASSES, depth=2, heads=2, width=8, mlp=6, **options)))
    dense, mixed = states
    assert all(torch.equal(dense[key], mixed[key]) for key in dense if "encoder_layer_1.mlp" not in key)


def test_experts_start_as_the_feed_forward_blocks_of_their_transformers_do() -> None:
    options = {"depth": 2, "heads": 2, "width": 64, "num_experts": 3, "num_shared_experts": 2, "expert_width": 128}
    torch.manual_seed(0)
    vit, gpt = MODELS["vit"]((1, 8, 8), CLASSES, **options), MODELS["gpt"]((9,), CLASSES, **options)
    for model, up, down in ((vit, (2 / 192) ** 0.5, (2 / 192) ** 0.5), (gpt, 0.02, 0.02 / 2)):
        for name, parameter in model.named_parameters():
            if "experts." in name:
                expected = up if "up.weight" in name else down if "down.weight" in name else 0.0
                assert float(parameter.detach().square().mean().sqrt()) == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize("name", SHAPES)
def test_mixtures_train_in_a_cohort_as_alone(name: str) -> None:
    for kind in KINDS:
        model = copy.deepcopy(build(name, kind)).double()
        tasks = tasks_of(model, (5, 3), SHAPES[name], CLASSES, each=name == "gpt")
        check_alike(model, tasks, settings=replace(SGD(1, 4, lr=0.05), momentum=0.9), tolerance=1e-9)


@every_mixture
def test_barriers_take_mixtures_apart_as_whole_models_would_give_them(name: str, kind: str) -> None:
    models = assert_agrees(build(name, kind), batch(SHAPES[name], 6), mixes=6)
    assert models.operations(batch(SHAPES[name], 6)) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 1}, "num_experts = 1 must be at least 2, or 0 for a model without experts"),
        ({"num_experts": -2}, "num_experts = -2 must be at least 2, or 0"),
        ({"num_experts": 4, "top_k": 5}, "top_k = 5 must be at most num_experts = 4; 0 takes all experts"),
        ({"num_experts": 4, "top_k": 1}, "top_k = 1 would leave the gate untrained"),
        ({"num_experts": 4, "top_k": -1}, "top_k = -1 must be at least 0"),
        ({"num_experts": 4, "num_shared_experts": -1}, "num_shared_experts = -1 must be at least 0"),
        ({"num_experts": 4, "expert_width": -8}, "expert_width = -8 must be at least 0"),
        ({"num_experts": 4, "moe_blocks": (0, 6)}, "moe_blocks = [0, 6]: 6 must be from -4 to 3"),
        ({"num_experts": 4, "moe_blocks": (-5,)}, "moe_blocks = [-5]: -5 must be from -4 to 3"),
        ({"top_k": 2}, "top_k = 2 needs experts; set num_experts to 2 or more"),
        ({"moe_blocks": (0,)}, "moe_blocks = [0] needs experts; set num_experts to 2 or more"),
    ],
)
@pytest.mark.parametrize("name", SHAPES)
def test_options_out_of_range_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        MODELS[name](SHAPES[name], CLASSES, depth=4, heads=2, width=8, **options)
    assert "\n" not in str(caught.value)


def test_a_block_that_is_named_twice_is_one_block() -> None:
    options = {"top_k": 0, "num_shared_experts": 0, "expert_width": 0}
    found = mixtures(2, 12, num_experts=3, moe_blocks=(1, -1), **options)
    assert (found.blocks, found.hidden, found.top_k) == (frozenset({1}), 12, 3)
