import copy
import re
from contextlib import nullcontext as does_not_raise
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from fedsim.alignment.matched import match_models
from fedsim.alignment.symmetries.checks import check_spec
from fedsim.alignment.symmetries.permutations import (
    Permutation,
    Segment,
    Spec,
    Symmetry,
    invert,
    permute,
    permute_entry,
    positions,
    random_permutation,
)
from fedsim.alignment.symmetries.spec import Derivation, derive, permutation_spec
from fedsim.models.architectures import MODELS
from fedsim.models.params import Params, fit, state_of
from fedsim.seeds import rng
from tests.alignment.architectures import ARCHITECTURES, Branching, inputs_of
from tests.models.foreign import FOREIGN, foreign
from tests.models.foreign import inputs_of as foreign_inputs
from tests.models.test_architectures import CASES, CLASSES, SMALL, ZOO, batch, narrow

every_model = pytest.mark.parametrize(("name", "norm"), CASES)
every_architecture = pytest.mark.parametrize("kind", ARCHITECTURES, ids=lambda kind: kind.__name__)


class Case(NamedTuple):
    derivation: Derivation
    params: Params
    inputs: Tensor

    @property
    def spec(self) -> Spec:
        return self.derivation.spec


def distinct(model: nn.Module) -> Params:
    """Return values that tell units apart, also where new models have the same for all of them."""
    generator = torch.Generator().manual_seed(0)
    params = {}
    for key, value in state_of(model).items():
        noise = torch.randn(value.shape, generator=generator)
        if not value.is_floating_point():
            params[key] = value.clone()
        elif key.endswith("running_var"):
            params[key] = 0.5 + noise.abs()
        elif value.ndim < 2:
            params[key] = value + 0.3 * noise
        else:
            params[key] = noise * (4 * len(value) / value.numel()) ** 0.5
    return params


def doubled(values: Params) -> Params:
    return {key: value.double() if value.is_floating_point() else value for key, value in values.items()}


@cache
def zoo(name: str, norm: str | None) -> Case:
    shape = SMALL.get(name, ZOO[name].shape)
    model = narrow(name, shape, norm)
    inputs = batch(shape)
    return Case(derive(model, inputs), distinct(model), inputs)


@cache
def own(kind: Any) -> Case:
    torch.manual_seed(0)
    model, inputs = kind().double(), inputs_of(kind)
    return Case(derive(model, inputs), doubled(distinct(model)), inputs)


def run(case: Case, params: Params) -> dict[str, Tensor]:
    """Return copies of all tensors on the way, the last one being the logits."""
    seen: dict[str, Tensor] = {}

    def visit(node: fx.Node, value: Any) -> None:
        if node.name in case.derivation.values:
            seen[node.name] = value.clone()

    case.derivation.run(params, case.inputs, visit)
    return seen


def logits(case: Case, params: Params) -> Tensor:
    return case.derivation.run(params, case.inputs, lambda node, value: None)


@cache
def moved(name: str, norm: str | None) -> tuple[Permutation, Params]:
    case = zoo(name, norm)
    drawn = random_permutation(case.spec, rng(1))
    return drawn, permute(case.params, case.spec, drawn)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.slow
@every_model
def test_random_permutations_leave_the_logits_of_every_model_unchanged(name: str, norm: str | None) -> None:
    case = zoo(name, norm)
    double = doubled({"": case.inputs})[""]
    check_spec(case.derivation.model, doubled(case.params), case.spec, double, rng(0), 1e-10)


@pytest.mark.slow
@every_model
def test_every_value_on_the_way_moves_as_its_axes_say(name: str, norm: str | None) -> None:
    case, (drawn, params) = zoo(name, norm), moved(name, norm)
    before, after = run(case, case.params), run(case, params)
    assert len(before) > 5
    for node, value in before.items():
        expected = permute_entry(value, case.derivation.values[node], drawn)
        assert not expected.is_floating_point() or difference(expected, after[node]) < 1e-5, node


@pytest.mark.slow
@every_model
def test_the_spec_has_an_axis_of_each_dimension_of_every_floating_entry(name: str, norm: str | None) -> None:
    spec, params = zoo(name, norm).spec, zoo(name, norm).params
    floating = {key: tuple(value.shape) for key, value in params.items() if value.is_floating_point()}
    assert {key: tuple(sum(part.size for part in axis) for axis in axes) for key, axes in spec.axes.items()} == floating
    parts = [part for axes in spec.axes.values() for axis in axes for part in axis]
    assert all(part.size == spec.sizes[part.order] * part.repeat for part in parts if part.order)
    assert spec.sizes.keys() == {part.order for part in parts if part.order}
    assert min(spec.sizes.values()) > 1
    assert spec.statistics == {key for key in params if re.search(r"running_(mean|var)$", key)}


@pytest.mark.slow
@every_model
def test_the_inverse_of_a_permutation_restores_the_bits(name: str, norm: str | None) -> None:
    case, (drawn, params) = zoo(name, norm), moved(name, norm)
    back = permute(params, case.spec, invert(drawn))
    assert all(torch.equal(back[key], value) for key, value in case.params.items())
    assert any(not torch.equal(params[key], value) for key, value in case.params.items())


RESNET20 = ["conv1", *(f"layer1.{i}.conv1" for i in range(3))]
RESNET20 += [f"layer{s}.{name}" for s in (2, 3) for name in ("0.conv1", "0.conv2", "1.conv1", "2.conv1")]
RESNET18 = ["conv1", "layer1.0.conv1", "layer1.1.conv1"]
RESNET18 += [f"layer{s}.{name}" for s in (2, 3, 4) for name in ("0.conv1", "0.conv2", "1.conv1")]
# The inverted residuals that begin with another stream than they end with: the first blocks of stages 3 to 7.
MOBILENET = ["features.0.0", *(f"features.{i}.conv.0.0" for i in range(2, 18)), "features.18.0"]
MOBILENET += [f"features.{i}.conv.2" for i in (4, 7, 11, 14, 17)]


def blocks(names: list[str], inner: str, attention: str) -> list[list[str]]:
    return [
        each for name in names for each in ([f"{name}.{attention}:qk", f"{name}.{attention}:vo"], [f"{name}.{inner}"])
    ]


ORDERS: dict[str, list[list[str]]] = {
    "mlp": [["fc1"], ["fc2"]],
    "lenet5": [["conv1"], ["conv2"], ["fc1"], ["fc2"]],
    "cnn": [["conv1"], ["conv2"], ["fc1"]],
    "resnet18": [[name] for name in RESNET18],
    "resnet20": [[name] for name in RESNET20],
    "mobilenet": [[name] for name in MOBILENET],
    "vit": [
        ["conv_proj"],
        *blocks([f"encoder.layers.encoder_layer_{i}" for i in range(2)], "mlp.0", "self_attention"),
    ],
    "char-lstm": [["embedding"], ["lstm.0"], ["lstm.1"]],
    "text-cnn": [["embedding"], ["conv.0"], ["conv.1"], ["conv.2"]],
    "gpt": [["wte"], *blocks(["h.0", "h.1"], "mlp.c_fc", "attn.c_attn")],
}


@every_model
def test_hidden_units_are_not_fixed_without_need(name: str, norm: str | None) -> None:
    case = zoo(name, norm)
    assert case.derivation.unknown == ()
    symmetries = case.spec.symmetries
    found = [list(each.widths) for each in symmetries]
    if name.startswith("vgg"):
        layers = [key.removesuffix(".weight") for key, value in case.params.items() if value.ndim > 1]
        assert found == [[layer] for layer in layers[:-1]]
    elif name == "torchvision":  # channels that are shuffled and split in two in turn
        assert [names[0] for names in found][:2] == ["conv1.0", "stage2.0.branch1.2:0"]
        assert len(found) == 30
    else:
        assert sorted(found) == sorted(ORDERS[name])
        assert name == "mobilenet" or found == ORDERS[name]
    if norm == "group":
        hidden = {"classifier.0"} if name == "vgg11" else set()
        assert all(each.blocks == 2 or set(each.widths) == hidden for each in symmetries)
    elif name in ("vit", "gpt"):
        assert [each.blocks for each in symmetries] == [8, 2, symmetries[2].blocks, 2, symmetries[2].blocks]
        assert set(symmetries[1].widths.values()) == {4}
    else:
        # One order, in single blocks or in one block: every unit can take any place.
        assert all(len(each.widths) == 1 and 1 in (each.blocks, *each.widths.values()) for each in symmetries)


@pytest.mark.slow
@every_model
def test_units_that_move_in_one_tensor_alone_change_the_logits(name: str, norm: str | None) -> None:
    case = zoo(name, norm)
    expected = logits(case, case.params)
    for order in list(case.spec.sizes)[:: max(1, len(case.spec.sizes) // 3)]:
        drawn = {order: torch.arange(case.spec.sizes[order]).roll(1)}
        key, dimension = next((key, d) for key, d in case.spec.uses(order) if case.params[key].ndim > 1)
        alone = case.params[key].index_select(dimension, positions(case.spec.axes[key][dimension], drawn))
        assert difference(expected, logits(case, {**case.params, key: alone})) > 1e-4


def test_channels_cannot_leave_their_group_nor_classes_their_place() -> None:
    for name in ("resnet18", "vgg11", "mobilenet"):
        case = zoo(name, "group")
        expected = logits(case, case.params)
        order = next(iter(case.spec.symmetries[0].widths))
        units = torch.arange(case.spec.sizes[order])
        across = {order: torch.cat([units[-1:], units[1:-1], units[:1]])}
        assert difference(expected, logits(case, permute(case.params, case.spec, across))) > 1e-4
        # The first and the last unit can change places with their groups.
        swapped = {order: units.roll(len(units) // 2)}
        assert difference(expected, logits(case, permute(case.params, case.spec, swapped))) < 1e-5
        head = f"{ZOO[name].classifier}.weight"
        assert difference(expected, logits(case, {**case.params, head: case.params[head].roll(1, 0)})) > 1e-4


@every_architecture
def test_other_architectures_have_the_symmetries_that_they_should(kind: Any) -> None:
    case = own(kind)
    assert tuple((each.blocks, dict(each.widths)) for each in case.spec.symmetries) == kind.symmetries
    check_spec(case.derivation.model, case.params, case.spec, case.inputs, rng(0), 1e-10)


def test_operations_without_a_rule_are_named() -> None:
    names = {kind.__name__: own(kind).derivation.unknown for kind in ARCHITECTURES}
    assert {name: unknown for name, unknown in names.items() if unknown} == {
        "Sorted": ("sort",),
        "Overridden": ("relu",),
        "WithBranch": ("branch",),
        "SharedWithBranch": ("branch",),
        "Parametrised": ("a",),
    }


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["squeezenet1_1", "efficientnet_b0"])
def test_a_classifier_of_torchvision_has_valid_symmetries(architecture: str) -> None:
    torch.manual_seed(0)
    model = MODELS["torchvision"]((3, 32, 32), CLASSES, architecture=architecture)
    inputs = batch((3, 32, 32)).double()
    derivation = derive(model.double(), inputs)
    params = doubled(distinct(model))
    assert derivation.unknown == ()
    check_spec(model, params, derivation.spec, inputs, rng(0), 1e-10)
    move = sum(params[key].numel() for key in derivation.spec.axes if any(_moves(derivation.spec, key)))
    assert move > 0.99 * sum(value.numel() for value in params.values())


def _moves(spec: Spec, key: str) -> list[bool]:
    return [any(part.order for part in axis) for axis in spec.axes[key]]


def test_a_wrong_spec_is_refused_with_the_name_of_the_order() -> None:
    case = zoo("resnet18", "batch")
    key = "layer2.0.conv1.weight"
    axes = {**case.spec.axes, key: (((Segment(8),)), *case.spec.axes[key][1:])}
    wrong = Spec(case.spec.symmetries, axes, case.spec.statistics)
    with pytest.raises(ValueError, match=r"^the order 'layer2\.0\.conv1' changes the outputs by .* of the largest"):
        check_spec(case.derivation.model, case.params, wrong, case.inputs, rng(0))
    missing = Spec(case.spec.symmetries, {k: a for k, a in case.spec.axes.items() if k != key})
    with pytest.raises(ValueError, match=r"^the spec has nothing for 'layer2\.0\.conv1\.weight', which has the shape"):
        check_spec(case.derivation.model, case.params, missing, case.inputs, rng(0))


def test_a_model_that_cannot_be_traced_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^model = Branching cannot be traced by torch\.fx: [^\n]+$"):
        derive(Branching(), torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))


def test_deriving_does_not_change_the_model() -> None:
    model = copy.deepcopy(zoo("resnet18", "batch").derivation.model).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    spec = permutation_spec(model, zoo("resnet18", "batch").inputs)
    assert spec == zoo("resnet18", "batch").spec
    assert model.training
    assert model.layer1[0].relu.inplace
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_spec_does_not_depend_on_the_number_of_inputs() -> None:
    for name in ("cnn", "vit", "gpt", "char-lstm"):
        case = zoo(name, None)
        inputs = torch.cat([case.inputs, case.inputs[:1]])
        assert permutation_spec(case.derivation.model, inputs) == case.spec


def test_an_order_of_one_unit_is_checked_without_end_of_the_search() -> None:
    model, unit = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2)), (Segment(1, "unit"),)
    axes = {"0.weight": (unit, (Segment(2),)), "0.bias": (unit,), "1.weight": ((Segment(2),), unit)}
    spec = Spec((Symmetry(1, {"unit": 1}),), {**axes, "1.bias": ((Segment(2),),)})
    with does_not_raise():
        check_spec(model, distinct(model), spec, torch.ones(2, 2), rng(0))


def test_inputs_that_the_model_does_not_take_are_refused_in_one_line() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"^len\(inputs\) = 1 must be at least 2; [^\n]+$"):
        derive(model, torch.ones(1, 3))
    with pytest.raises(
        ValueError, match=r"^model = Linear does not take inputs of shape \(2, 4\) and torch\.float32 [^\n]+$"
    ):
        derive(model, torch.ones(2, 4))


def test_optional_arguments_of_a_model_have_their_defaults() -> None:
    model, inputs = foreign("options"), foreign_inputs(FOREIGN["options"].shape)
    derivation = derive(model, inputs)
    assert derivation.spec.sizes == {"one": 7}
    order = {"one": torch.arange(6, -1, -1)}
    params = permute(model.state_dict(), derivation.spec, order)
    assert not torch.equal(params["one.weight"], model.state_dict()["one.weight"])
    torch.testing.assert_close(functional_call(model, params, (inputs,)), model(inputs))


class Tied(nn.Module):
    """A frozen layer, and an output embedding that is the input's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.frozen = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(6, 6)
        self.outer, self.head = nn.Linear(8, 6), nn.Linear(6, 9)
        self.head.weight = self.embed.weight
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.embed(x).mean(1))
        return self.head(x + self.outer(self.inner(x).relu()))


@pytest.mark.parametrize("by", ["weights", "c2m3", "activations", "sinkhorn"])
def test_state_dicts_with_frozen_and_tied_tensors_are_matched_and_a_spec_names_what_leaves_them_out(by: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, tokens = Tied(), torch.randint(0, 9, (30, 4))
        model.inner.bias.data += 1
    spec, params = permutation_spec(model, tokens), state_of(model)
    hidden = random_permutation(spec, rng(1))
    other = Tied()
    other.load_state_dict(model.state_dict() | permute(params, spec, hidden))
    whole = [model.state_dict(), other.state_dict()]
    assert list(hidden) == ["inner"]
    assert whole[0].keys() - params.keys() == {"frozen.weight", "frozen.bias", "head.weight"}
    targets = torch.zeros(30, dtype=torch.int64)
    found, expected = (
        match_models(model, states, by, tokens, targets=targets, rng=rng(2)).states
        for states in (whole, [params, state_of(other)])
    )
    for state, like in zip(found, expected, strict=True):
        assert all(torch.equal(state[key], value) for key, value in like.items())
        assert by == "sinkhorn" or all(torch.equal(state[key], value) for key, value in params.items())
    with pytest.raises(ValueError, match=r"no entry 'head\.weight'; .* fit\(model, state_dict, 'a'\) there, which "):
        permute({"head.weight": whole[0]["head.weight"]}, spec, hidden)
    assert fit(model, whole[0], "a").keys() == params.keys()
