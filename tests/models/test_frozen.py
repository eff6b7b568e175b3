"""Frozen tensors: in the model, and in no state."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.models.copies import copy_of
from fedsim.models.frozen import frozen_keys, frozen_of, train_mode_
from fedsim.models.layers import Layers, describe_
from fedsim.models.params import fit, load_state_, state_of
from fedsim.models.summary import summary_of
from fedsim.training import SGD, LocalPlan, Phase, train_
from fedsim.training.buffers import recompute_buffers_

INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def make() -> nn.Sequential:
    """Layers 0 (frozen), 1 (a norm, frozen), 3 (its weight frozen) and 4."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    model[3].weight.requires_grad_(False)
    return model


FROZEN = [f"0.{name}" for name in ("weight", "bias")] + ["3.weight"]
NORM = [f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


def test_the_state_and_the_layers_are_what_trains() -> None:
    model = make()
    layers = Layers.of(model, INPUTS)
    assert frozen_keys(model) == {*FROZEN, *NORM}
    assert list(state_of(model)) == ["3.bias", "4.weight", "4.bias"]
    assert layers.names == layers.group("all").layers == ("3", "4")
    assert layers["3"].keys == ("3.bias",)
    assert layers["3"].size == 20
    assert layers.group("frozen").layers == layers.frozen == ("0", "1")
    assert layers.group("body").layers == ("3",)
    for expression in ("0", "norm | 1", "frozen | 4"):
        with pytest.raises(ValueError, match=r"matches (only frozen layers|nothing).*; layers are: 3, 4"):
            layers.group(expression)


def test_a_norm_without_parameters_and_one_with_a_trainable_bias_are_not_frozen() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].weight.requires_grad_(False)
    assert frozen_keys(model) == {"1.weight"}
    assert Layers.of(model)["1"].statistics == ("1.running_mean", "1.running_var")


def test_a_model_without_any_gradient_is_one_for_evaluation() -> None:
    assert state_of(make().requires_grad_(False)).keys() == make().state_dict().keys()


def test_copies_share_the_frozen_tensors_and_loading_leaves_them() -> None:
    model = make()
    copied = copy_of(model)
    for key, value in frozen_of(model).items():
        assert frozen_of(copied)[key] is value
    assert copied[4].weight is not model[4].weight
    other = {key: value + 1 for key, value in model.state_dict().items()}
    load_state_(copied, other)
    assert torch.equal(copied[4].weight, model[4].weight + 1)
    assert torch.equal(model[0].weight, make()[0].weight)


def test_a_given_state_may_hold_frozen_tensors_if_they_are_the_models() -> None:
    model = make()
    assert fit(model, dict(model.state_dict()), "state 0").keys() == state_of(model).keys()
    assert fit(model, state_of(model), "state 0").keys() == state_of(model).keys()
    other = {key: value + 1 for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"state 0 and the model differ in '0.weight', which is frozen; load it into"):
        fit(model, other, "state 0")


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_training_is_that_of_torch_with_the_parameters_that_require_a_gradient(decay: float) -> None:
    model, plain = make(), make()
    targets = torch.arange(6) % 3
    settings = SGD(epochs=3, batch_size=6, lr=0.1, momentum=0.9, weight_decay=decay)
    before = {key: value.clone() for key, value in frozen_of(model).items()}
    trained = train_(model, INPUTS, targets, LocalPlan(), settings, stream())
    optimiser = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=decay)
    train_mode_(plain)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(plain(INPUTS), targets).backward()
        optimiser.step()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-5, atol=1e-6)
    assert trained.optimizer_state.keys() == {"3.bias", "4.weight", "4.bias"}
    assert all(torch.equal(value, before[key]) for key, value in frozen_of(model).items())
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in make().parameters()]


def stream() -> np.random.Generator:
    return np.random.default_rng(0)


def test_an_interrupted_training_leaves_no_more_frozen() -> None:
    model = make()
    plan = LocalPlan((Phase("4"), Phase("nothing")))
    with pytest.raises(ValueError, match="matches nothing"):
        train_(model, INPUTS, torch.zeros(6, dtype=torch.int64), plan, SGD(), stream())
    assert frozen_keys(model) == {*FROZEN, *NORM}


def test_recomputing_leaves_frozen_statistics() -> None:
    model = make()
    recompute_buffers_(model, INPUTS, 3)
    assert torch.equal(model[1].running_mean, torch.zeros(5))


def test_parts_of_any_model_can_be_frozen_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3))
    layers = describe_(model, INPUTS, freeze="0 | norm")
    assert layers.frozen == ("0", "1")
    assert list(state_of(model)) == ["2.weight", "2.bias"]
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    train_(model, INPUTS, torch.zeros(6, dtype=torch.int64), LocalPlan(), SGD(), stream())
    assert torch.equal(model[1].running_mean, torch.zeros(5))
    # The layers are settled: in copies, and while a phase trains a part.
    assert Layers.of(copy.deepcopy(model).requires_grad_(False)) is not None
    assert list(state_of(copy.deepcopy(model).requires_grad_(False))) == ["2.weight", "2.bias"]


def test_a_model_that_is_frozen_altogether_is_refused() -> None:
    with pytest.raises(
        ValueError, match="every parameter of the model is frozen; at least one must require a gradient"
    ):
        describe_(nn.Sequential(nn.Linear(4, 3)), INPUTS, freeze="all")


def test_the_summary_counts_parameters_and_bytes() -> None:
    summary = summary_of(make())
    assert (summary.trainable, summary.all_parameters) == (23, 25 + 10 + 30 + 18)
    assert summary.share == "23 of 83 parameters train (27.7 %), 92 of 332 bytes"
