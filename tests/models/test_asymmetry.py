"""Asymmetric networks: what is fixed, what trains, and that units cannot change places."""

import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.alignment import permutation_spec
from fedsim.alignment.symmetries.checks import check_spec
from fedsim.alignment.symmetries.spec import derive_some
from fedsim.errors import ConfigError
from fedsim.models.architectures import MODELS
from fedsim.models.architectures.gpt import gpt
from fedsim.models.asymmetry import Asymmetry, asymmetrise_, fixed_entries, merge_fixed_
from fedsim.models.copies import copy_of, loaded
from fedsim.models.gates import Gate
from fedsim.models.layers import describe_
from fedsim.models.params import Params, lerp, load_state_, state_of
from fedsim.models.saved import read_checkpoint
from fedsim.models.summary import summary_of
from fedsim.seeds import rng
from fedsim.training import LocalPlan, LocalSettings, LocalTask, train_, train_cohort

INPUTS = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.arange(12) % 3
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
W, SIGMA = Asymmetry(fixed=2), Asymmetry("sigma")


def mlp(asymmetry: Asymmetry | None = W, seed: int = 7, start: int = 0) -> nn.Module:
    torch.manual_seed(start)
    layers = {"fc1": nn.Linear(5, 6), "relu1": nn.ReLU(), "fc2": nn.Linear(6, 4), "relu2": nn.ReLU()}
    model = nn.Sequential(OrderedDict(layers | {"fc3": nn.Linear(4, 3)})).double()
    if asymmetry is not None:
        asymmetrise_(model, asymmetry, seed, INPUTS)
    describe_(model, INPUTS)
    return model


def states(count: int = 2, **settings: Any) -> list[Params]:
    return [{k: v.clone() for k, v in state_of(mlp(start=each, **settings)).items()} for each in range(count)]


def plain(state: Params, seed: int = 7) -> nn.Module:
    """Return the model with W itself as its weights, by the formula and not by the library."""
    model, source = mlp(None), fixed_entries(mlp(seed=seed))
    for name in ("fc1", "fc2", "fc3"):
        own, layer = source[f"{name}.parametrizations.weight.original"], model.get_submodule(name)
        trained = state[f"{name}.parametrizations.weight.original"]
        layer.weight.data = own.free * trained + (1 - own.free) * own.fixed
        layer.bias.data = state[f"{name}.bias"]
    return model


def is_fixed(model: nn.Module) -> bool:
    """Whether what trains is 0 bit for bit where the model is fixed."""
    state = state_of(model)
    return all(
        not bool(state[key][own.free == 0].count_nonzero()) and not bool(state[key][own.free == 0].signbit().any())
        for key, own in fixed_entries(model).items()
    )


def test_each_output_has_as_many_fixed_entries_as_asked_for_and_their_size_is_kappa() -> None:
    for amount, count in ((16, 16), (0.25, 16)):
        model = nn.Sequential(nn.Linear(64, 500), nn.Flatten(), nn.Linear(500, 2))
        asymmetrise_(model, Asymmetry(fixed={"0": amount}, kappa={"0": 0.5}), 1, torch.zeros(2, 64))
        [own] = fixed_entries(model).values()
        assert own.free.shape == (500, 64)
        assert bool(((own.free == 0).sum(1) == count).all())
        assert len({tuple(row) for row in own.free.tolist()}) == 500
        values = model[0].weight[own.free == 0].detach()
        assert torch.equal(values, own.fixed[own.free == 0])
        # 8,000 normal numbers: the standard error of the deviation is 0.5 / sqrt(16,000).
        assert abs(float(values.std()) - 0.5) < 0.02
        assert abs(float(values.mean())) < 0.03
    model = nn.Sequential(nn.Linear(64, 500))
    asymmetrise_(model, Asymmetry(fixed=16), 1, torch.zeros(2, 64))
    assert abs(float(model[0].weight[own.free == 0].detach().std()) - 0.25) < 0.01


def test_convolutions_fix_some_of_each_filters_entries() -> None:
    model = MODELS["resnet20"]((3, 8, 8), 10, norm="layer")
    asymmetrise_(model, Asymmetry(fixed={"conv1": 12, "layer*.conv*": 36, "fc": 8}), 0, IMAGES)
    counts = {key: (own.free == 0).flatten(1).sum(1).unique().tolist() for key, own in fixed_entries(model).items()}
    assert len(counts) == 20
    assert counts["conv1.parametrizations.weight.original"] == [12]
    assert counts["layer3.2.conv2.parametrizations.weight.original"] == [36]
    assert summary_of(model).trainable == sum(p.numel() for p in model.parameters()) - (
        16 * 12 + 36 * (6 * 16 + 6 * 32 + 6 * 64) + 10 * 8
    )


def test_the_free_parameters_are_those_of_the_paper() -> None:
    summary = summary_of(mlp())
    assert summary.trainable == 6 * (5 - 2) + 6 + 4 * (6 - 2) + 4 + 3 * (4 - 2) + 3
    assert summary.all_parameters == 6 * 5 + 6 + 4 * 6 + 4 + 3 * 4 + 3
    assert summary.trainable_bytes == 8 * summary.trainable


DIGEST = """
import hashlib, torch
from torch import nn
from fedsim.models.architectures.gpt import gpt
from fedsim.models.asymmetry import Asymmetry, asymmetrise_
def digest(start):
    torch.manual_seed(start)
    w = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    sigma = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    asymmetrise_(w, Asymmetry(), 7, torch.ones(2, 5))
    asymmetrise_(sigma, Asymmetry("sigma"), 7, torch.ones(2, 5))
    parts = [each.numpy().tobytes() for model in (w, sigma) for _, each in model.named_buffers()]
    assert len(parts) == 5
    return hashlib.sha256(b"".join(parts)).hexdigest()
"""


def test_what_is_fixed_follows_from_the_seed_and_the_layer_in_every_process() -> None:
    here: dict[str, Any] = {}
    exec(DIGEST, here)
    code, env = f"{DIGEST}\nprint(digest(1))", os.environ | {"PYTHONHASHSEED": "99"}
    there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    assert here["digest"](2) == there.stdout.strip()
    one, other, again = (fixed_entries(mlp(seed=seed)) for seed in (7, 8, 7))
    for key, own in one.items():
        assert torch.equal(own.free, again[key].free)
        assert torch.equal(own.fixed, again[key].fixed)
        assert not torch.equal(own.free, other[key].free)


def test_a_model_computes_with_the_mask_of_trained_and_fixed_values() -> None:
    model = mlp()
    torch.testing.assert_close(model(INPUTS), plain(state_of(model))(INPUTS), rtol=1e-12, atol=1e-12)
    assert is_fixed(model)
    assert not any(key.endswith((".free", ".fixed")) for key in model.state_dict())
    merged = copy_of(model)
    merge_fixed_(merged)
    assert merged.state_dict().keys() == mlp(None).state_dict().keys()
    assert torch.equal(merged(INPUTS), model(INPUTS))


@pytest.mark.parametrize("asymmetry", [None, W, SIGMA], ids=["standard", "w", "sigma"])
def test_two_hidden_units_change_places_without_effect_only_in_a_standard_model(asymmetry: Asymmetry | None) -> None:
    model = mlp(asymmetry)
    trained = {name.partition(".")[0]: p for name, p in model.named_parameters() if p.ndim == 2}
    before, order = model(INPUTS), torch.tensor([1, 0, 2, 3, 4, 5])
    with torch.no_grad():
        trained["fc1"].copy_(trained["fc1"][order])
        model.fc1.bias.copy_(model.fc1.bias[order])
        trained["fc2"].copy_(trained["fc2"][:, order])
    change = float((model(INPUTS) - before).detach().abs().max())
    assert change > 1e-2 if asymmetry else change < 1e-12


@pytest.mark.parametrize(
    "settings",
    [
        LocalSettings(epochs=3, batch_size=4, lr=0.1, momentum=0.9, weight_decay=0.1),
        LocalSettings(epochs=3, batch_size=4, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        LocalSettings(optimizer="adamw", epochs=3, batch_size=4, lr=0.05, weight_decay=0.1),
    ],
    ids=["momentum", "nesterov", "adamw"],
)
def test_fixed_entries_stay_through_training_alone_and_in_a_cohort(settings: Any) -> None:
    model, started = mlp(), states()
    before = model.fc1.weight.detach().clone()
    train_(model, INPUTS, TARGETS, LocalPlan(), settings, rng(0, "order"))
    assert is_fixed(model)
    own = fixed_entries(model)["fc1.parametrizations.weight.original"]
    assert torch.equal(model.fc1.weight[own.free == 0], own.fixed[own.free == 0])
    assert bool((model.fc1.weight != before)[own.free > 0].all())
    tasks = [LocalTask(state, INPUTS, TARGETS, rng(0, "order")) for state in started]
    together = train_cohort(mlp(), tasks, LocalPlan(), settings)
    for key, value in state_of(model).items():
        torch.testing.assert_close(together[0][0][key], value, rtol=1e-10, atol=1e-12)
    net = mlp()
    load_state_(net, lerp(together[0][0], together[1][0], 0.3))
    assert is_fixed(net)


def test_there_is_nothing_to_align_except_between_layers_without_fixed_entries() -> None:
    for asymmetry in (W, SIGMA):
        with pytest.raises(ValueError, match=r"^model = \w+ has no units that are known to change places \(it is asym"):
            permutation_spec(mlp(asymmetry), INPUTS)
    model = mlp(Asymmetry(fixed={"fc3": 2}))
    spec = permutation_spec(model, INPUTS)
    assert [list(each.widths) for each in spec.symmetries] == [["fc1"]]
    check_spec(model, state_of(model), spec, INPUTS, rng(0, "units"))


def test_gates_leave_the_residual_stream_and_the_heads_of_a_transformer() -> None:
    tokens = torch.arange(16).reshape(2, 8)
    torch.manual_seed(0)
    model = gpt((8,), 20, depth=2, heads=2, width=16, tied=False)
    before = {name for each in permutation_spec(model, tokens).symmetries for name in each.widths}
    asymmetrise_(model, SIGMA, 7, tokens)
    found = derive_some(model, tokens)
    assert not found.unknown
    # Hidden units of the two blocks' MLPs no longer change places.
    assert before - found.spec.sizes.keys() == {"h.0.mlp.c_fc", "h.1.mlp.c_fc"}
    stream = rng(0, "weights").normal
    drawn = {k: torch.from_numpy(stream(size=v.shape)) for k, v in state_of(model).items()}
    check_spec(model.double(), drawn, found.spec, tokens, rng(0, "units"), 1e-9)
    # Nor do those of a convolution, unlike those that no activation follows.
    images = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(80, 2))
    asymmetrise_(images, SIGMA, 7, IMAGES)
    assert list(permutation_spec(images, IMAGES).sizes) == ["2"]


def test_a_gate_is_the_papers_formula_on_features_and_on_channels() -> None:
    model = mlp(SIGMA)
    hidden = model.fc1(INPUTS)
    factor = model.relu1.factor_6
    for example, units in zip(model.relu1(hidden), hidden, strict=True):
        expected = [u / (1 + torch.exp(-(row @ units))) for u, row in zip(units, factor, strict=True)]
        torch.testing.assert_close(example, torch.stack(expected))
    torch.manual_seed(0)
    images = nn.Sequential(nn.Conv2d(3, 400, 3), nn.ReLU(), nn.Flatten(), nn.Linear(14400, 2))
    asymmetrise_(images, SIGMA, 7, IMAGES)
    gate = images[1]
    assert isinstance(gate, Gate)
    assert abs(float(gate.factor_400.std()) - 1 / 20) < 1e-3  # divided by the square root of the width
    channels = images[0](IMAGES)
    mixed = torch.einsum("ij,njhw->nihw", gate.factor_400, channels)
    torch.testing.assert_close(gate(channels), mixed.sigmoid() * channels)
    assert abs(float(mlp(Asymmetry("sigma", kappa=3.0)).relu1.factor_6.std() / factor.std()) - 3) < 1e-9


@pytest.mark.parametrize(
    ("asymmetry", "message"),
    [
        (Asymmetry(fixed={"fc1": 2, "fc2": 6}), "must be less than the 6 weights of an output of fc2"),
        (Asymmetry(fixed=4), "must be less than the 4 weights of an output of fc3"),
        (Asymmetry(fixed={"fc1": 2, "fc2": 2}, kappa={"fc1": 1.0}), "kappa has no value for fc2, whose entries are to"),
        (
            Asymmetry(fixed={"fc1": 2}, kappa={"fc1": 1.0, "fc3": 0.5}),
            "kappa has a value for fc3, of which fixed names",
        ),
    ],
)
def test_a_model_that_cannot_be_made_asymmetric_stays_as_it_is(asymmetry: Asymmetry, message: str) -> None:
    model = mlp(None)
    with pytest.raises(ValueError, match=message):
        asymmetrise_(model, asymmetry, 0, INPUTS)
    assert not fixed_entries(model)
    assert set(model.state_dict()) == set(mlp(None).state_dict())


def test_a_gate_that_blocks_share_has_a_matrix_for_each_width() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(5, 6), act=nn.ReLU(), b=nn.Linear(6, 4)))
    model.add_module("again", model.act)
    model.add_module("c", nn.Linear(4, 3))
    asymmetrise_(model.double(), SIGMA, 0, INPUTS)
    assert model.act is model.again
    assert {name for name, _ in model.act.named_buffers()} == {"factor_6", "factor_4"}
    assert model(INPUTS).shape == (12, 3)


def test_a_file_of_plain_weights_is_read_back_and_one_with_other_fixed_entries_is_not(tmp_path: Path) -> None:
    state = states()[1]
    save_file(
        {key: value.contiguous() for key, value in plain(state).state_dict().items()}, tmp_path / "plain.safetensors"
    )
    save_file(state, tmp_path / "own.safetensors")
    for name in ("plain", "own"):
        found = read_checkpoint(tmp_path / f"{name}.safetensors", mlp(), "mlp")
        for key, value in state.items():
            assert torch.equal(found[key], value)
        with pytest.raises(
            ConfigError, match=r"has other fixed entries in 'fc1.* than the model; use .* the seed of its"
        ):
            read_checkpoint(tmp_path / f"{name}.safetensors", mlp(seed=8), "mlp")
    standard = mlp(None)
    save_file(dict(standard.state_dict()), tmp_path / "standard.safetensors")
    with pytest.raises(ConfigError, match="has other fixed entries"):
        read_checkpoint(tmp_path / "standard.safetensors", mlp(), "mlp")


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.act(self.fc1(x))))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("build", "asymmetry", "message"),
    [
        (lambda: mlp(None), Asymmetry(fixed=5), "fixed = 5 must be less than the 5 weights of an output of fc1; use a"),
        (lambda: mlp(None), Asymmetry(fixed={"fc9": 1}), "layer pattern 'fc9' matches nothing; layers are: fc1"),
        (lambda: mlp(None), Asymmetry(fixed={"fc*": 1, "head": 2}), r"fixed: 'fc\*' and 'head' both name fc3; let one"),
        (lambda: mlp(None), Asymmetry(fixed=1, kappa={"fc1": 1.0}), "kappa has no value for fc2, whose entries are to"),
        (lambda: nn.Sequential(nn.LayerNorm(5)), W, "kind = 'w' fixes entries of linear and convolutional layers, and"),
        (tied, W, "the weight of 0 is tied to another, which would be fixed too; let fixed name other layers"),
        (lambda: nn.Sequential(nn.Linear(5, 3)), SIGMA, "gates activations that are modules, .* uses none; use kind"),
        (Functional, SIGMA, "the model calls relu as a function; use kind = 'w', or write it as a module"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_made_asymmetric_is_one_line(
    build: Callable[[], nn.Module], asymmetry: Asymmetry, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        asymmetrise_(build().double(), asymmetry, 0, INPUTS)


def test_gradients_at_fixed_entries_are_zero_and_elsewhere_those_of_the_weight() -> None:
    model = mlp()
    standard = plain(state_of(model))
    for each in (model, standard):
        cross_entropy(each(INPUTS), TARGETS).backward()
    for key, own in fixed_entries(model).items():
        gradient = model.get_parameter(key).grad
        assert gradient is not None
        expected = standard.get_parameter(key.partition(".")[0] + ".weight").grad
        torch.testing.assert_close(gradient, expected * own.free, rtol=1e-10, atol=1e-14)


def test_a_copy_with_another_state_keeps_what_is_fixed() -> None:
    first, second = states()
    net = loaded(mlp(), second)
    torch.testing.assert_close(net(INPUTS), plain(second)(INPUTS), rtol=1e-12, atol=1e-12)
    assert not torch.equal(net(INPUTS), loaded(mlp(), first)(INPUTS))
