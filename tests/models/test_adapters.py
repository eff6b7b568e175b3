"""Adapters: a frozen base, and factors that start at nothing and merge into it."""

import copy
from typing import Any, get_args

import pytest
import torch
from torch import nn

from fedsim.models.adapter import Adapter, AdapterKind
from fedsim.models.adapters import adapt_, adapted_layers, adapted_paths, merge_
from fedsim.models.frozen import frozen_of, unsettle_
from fedsim.models.layers import describe_

INPUTS = torch.linspace(-1, 1, 40, dtype=torch.float64).view(8, 5)


class Net(nn.Module):
    """A linear layer that is called, one whose weight is only read, two that share a weight, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 6)
        self.read = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.one = nn.Linear(6, 6, bias=False)
        self.two = nn.Linear(6, 6, bias=False)
        self.two.weight = self.one.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(nn.functional.linear(self.fc(x).relu(), self.read.weight))
        return self.head(self.two(self.one(x)).relu())


def adapted(random: bool = False, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = Net().double()
    adapt_(model, Adapter(**{"rank": 2, "alpha": 3.0, "targets": "fc"} | options), INPUTS)
    if random:
        for key, value in model.named_parameters():
            if "lora_" in key or "ia3_" in key or "vera_" in key:
                value.data = torch.randn(value.shape, generator=torch.manual_seed(len(key)), dtype=value.dtype)
    return model


def test_only_the_factors_and_the_head_train_and_nothing_changes_at_first() -> None:
    model, base = adapted(), adapted(targets="head", head=False)
    merge_(base)
    layers = describe_(model, INPUTS)
    assert layers.names == ("fc.lora_A.default", "fc.lora_B.default", "head")
    assert layers.group("*lora_A* | head").layers == ("fc.lora_A.default", "head")
    assert torch.equal(model(INPUTS), base(INPUTS))
    assert set(frozen_of(model)) == {"fc.base_layer.weight", "fc.base_layer.bias"} | {
        key for key in base.state_dict() if not key.startswith(("fc.", "head.", "two."))
    }
    assert describe_(adapted(head=False), INPUTS).names == ("fc.lora_A.default", "fc.lora_B.default")


def test_an_adapted_layer_is_the_sum_of_its_base_and_of_the_scaled_product() -> None:
    fc = adapted(random=True).fc
    a, b = fc.lora_A.default.weight, fc.lora_B.default.weight
    weight = fc.base_layer.weight + 3 / 2 * b @ a
    torch.testing.assert_close(fc(INPUTS), INPUTS @ weight.T + fc.base_layer.bias)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "vera"])
def test_a_merged_model_has_the_keys_of_its_base_and_the_outputs_of_the_adapted_one(kind: str) -> None:
    model = adapted(random=True, kind=kind).eval()
    merged = copy.deepcopy(model)
    merge_(merged)
    assert list(merged.state_dict()) == list(Net().state_dict())
    assert adapted_paths(model) == ["fc"]
    assert not adapted_paths(merged)
    torch.testing.assert_close(merged(INPUTS), model(INPUTS))
    assert (merged(INPUTS) - adapted()(INPUTS)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "fd"}, "layer pattern 'fd' matches nothing; layers are: fc, read, norm, one, head"),
        ({"targets": "norm"}, "targets = 'norm' names no linear layer; linear layers are: fc, read, head"),
        ({"targets": "fc | one"}, "names one, which shares its weight with two, .* leave it out, as by 'fc"),
        ({"targets": "read"}, "the model uses the weight of read without calling the layer"),
        ({"targets": "head"}, "names only the head, which trains whole; add other layers, or set head = false"),
        ({"rank": 6}, "rank = 6 is greater than the size of fc, 5; use a smaller rank"),
    ],
)
def test_what_cannot_have_an_adapter_is_an_error_that_says_what_can(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(**options)


def test_a_module_with_two_names_gets_no_adapter() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    model.append(model[2]).insert(2, model[0])
    with pytest.raises(ValueError, match="names 0, which shares its weight with 2"):
        adapt_(model, Adapter(rank=2, targets="0"), INPUTS)


def test_an_adapted_model_can_be_copied_and_described_again() -> None:
    model = copy.deepcopy(adapted(random=True, dropout=0.3))
    names = describe_(model, INPUTS).names
    unsettle_(model)
    assert describe_(copy.deepcopy(model), INPUTS, freeze="*lora_A*").names == tuple(
        name for name in names if "lora_A" not in name
    )


@pytest.mark.parametrize("kind", get_args(AdapterKind))
def test_what_was_added_to_a_layer_is_found_by_its_path(kind: AdapterKind) -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    adapt_(model, Adapter(kind, rank=2), INPUTS)
    assert list(adapted_layers(describe_(model, INPUTS[:2]).names)) == ["0"]
