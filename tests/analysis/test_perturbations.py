import copy

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsim.analysis.perturbations import perturbations
from fedsim.seeds import rng
from tests.analysis.cases import models, norm_net, plain_losses, train_two


def test_every_row_agrees_with_a_slow_implementation() -> None:
    model, states, inputs, targets = models(2, norm_net)
    inputs, targets = inputs.repeat(4, 1), targets.repeat(4)
    table = perturbations(model, states, inputs, targets, fgsm=[0.0, 0.2], noise=[0.5], seed=3)
    assert table[["base", "perturbation", "size"]].to_numpy().tolist() == [
        [base, kind, size] for base in (0, 1) for kind, size in (("fgsm", 0.0), ("fgsm", 0.2), ("noise", 0.5))
    ]
    drawn = torch.from_numpy(rng(3, "perturbations").standard_normal(inputs.shape))
    for _, row in table.iterrows():
        net = copy.deepcopy(model)
        net.load_state_dict(states[row["base"]])
        moving = inputs.clone().requires_grad_()
        cross_entropy(net.eval()(moving), targets).backward()
        direction = moving.grad.sign() if row["perturbation"] == "fgsm" else drawn
        losses, errors = plain_losses(model, states[row["base"]], inputs + row["size"] * direction, targets)
        assert row["n"] == len(inputs)
        assert row["loss"] == pytest.approx(float(losses.mean()), abs=1e-12)
        assert row["error"] == pytest.approx(float(errors.mean()), abs=1e-12)


def test_the_loss_of_a_linear_model_rises_by_the_norm_of_its_gradient() -> None:
    # w x moves by eps |w|_1 and by no more.
    model = nn.Linear(3, 1, bias=False).double()
    weight = torch.tensor([[1.0, -2.0, 0.5]]).double()
    inputs, targets = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double(), torch.zeros(9).double()
    table = perturbations(
        model, [{"weight": weight}], inputs, targets, fgsm=[0.0, 0.1], criterion=lambda outputs, _: outputs[:, 0]
    )
    assert table["loss"][1] - table["loss"][0] == pytest.approx(0.35)
    assert table["error"].isna().all()


def test_sizes_matter_and_gradients_hurt_more_than_noise() -> None:
    trained = train_two(same_start=True)
    table = perturbations(
        trained.model, trained.finals, trained.inputs, trained.targets, fgsm=[0.1, 0.5], noise=[0.1, 0.5]
    )
    error = table.set_index(["perturbation", "size", "base"])["error"].sort_index()
    assert (error["fgsm", 0.5] > error["fgsm", 0.1] + 0.1).all()
    assert (error["fgsm", 0.5] > error["noise", 0.5] + 0.1).all()


def test_models_need_no_gradients_and_stay_as_they_were() -> None:
    model, states, inputs, targets = models(3, norm_net)
    model.requires_grad_(False)
    model.training, before = True, copy.deepcopy(model.state_dict())
    one, two = (perturbations(model, states, inputs, targets, fgsm=[0.1], noise=[0.1], threads=k) for k in (1, 2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not inputs.requires_grad


def test_the_draw_is_the_same_for_all_models() -> None:
    model, states, inputs, targets = models(1)
    table = perturbations(model, states * 2, inputs, targets, noise=[0.3], seed=1)
    assert table["loss"][0] == table["loss"][1]
    assert table["loss"][0] != perturbations(model, states, inputs, targets, noise=[0.3], seed=2)["loss"][0]


def test_wrong_arguments_are_named() -> None:
    model, states, inputs, targets = models(1)
    for arguments, options, message in (
        ((states, inputs.long()), {"noise": [0.1]}, "inputs are torch.int64; only floating-point inputs"),
        ((states, inputs), {}, "fgsm and noise are both empty"),
        ((states, inputs), {"fgsm": [-0.1]}, "fgsm has the size -0.1"),
        (([], inputs), {"fgsm": [0.1]}, "there are no states"),
        ((states, inputs[:0]), {"fgsm": [0.1]}, "there are no inputs"),
        ((states, inputs[1:]), {"fgsm": [0.1]}, "there are 40 targets for 39 inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            perturbations(model, *arguments, targets, **options)


def test_a_model_whose_loss_is_not_finite_has_no_error() -> None:
    model, states, inputs, targets = models(2)
    spoilt = {key: value * 1e300 for key, value in states[1].items()}
    table = perturbations(model, [states[0], spoilt], inputs, targets, noise=[0.1])
    assert table["error"].isna().tolist() == [False, True]
