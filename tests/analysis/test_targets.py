"""Examples and states that a model cannot be measured with are one line that says what to give instead."""

import copy
import math
import re

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.analysis import barriers, connectivity, criticality, perturbations, stitching
from fedsim.analysis.similarity import similarity
from tests.analysis.cases import models

N = 40
CLASSES = torch.arange(N) % 3
BAD = {
    "column": (CLASSES.double()[:, None], "class indices"),
    "whole column": (CLASSES[:, None], "targets.squeeze(1)"),
    "one-hot": (nn.functional.one_hot(CLASSES), "targets.argmax(1)"),
    "real": (torch.linspace(0, 1, N), "class indices"),
    "int32": (CLASSES.int(), "targets.long()"),
    "too many": (CLASSES + 1, "the class 3; the model has outputs for classes from 0 to 2"),
    "negative": (CLASSES - 1, "the class -1; the model has outputs for classes from 0 to 2"),
    "too few": (CLASSES[:-1], "there are 39 targets for 40 inputs"),
}


@pytest.mark.parametrize("kind", BAD)
def test_targets_that_are_no_class_indices_are_refused_in_one_line(kind: str) -> None:
    model, states, inputs, _ = models(2)
    targets, message = BAD[kind]
    measures = [
        lambda: barriers(model, states, inputs, targets),
        lambda: fedsim.barriers(model, states, inputs, targets),
        lambda: stitching(model, states, inputs, targets),
        lambda: criticality(model, states, states[0], inputs, targets),
        lambda: perturbations(model, states, inputs, targets, noise=[0.1]),
    ]
    for measure in measures:
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            measure()
        assert "\n" not in str(caught.value)


def test_a_criterion_takes_any_targets() -> None:
    model, states, inputs, _ = models(2)

    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, :1] - targets).square().sum(1)

    table = barriers(model, states, inputs, CLASSES.double()[:, None], criterion=squared, groups="full")
    assert (table["loss"] > 0).all()


@pytest.mark.parametrize("targets", [torch.zeros(4, dtype=torch.int64), torch.rand(4, 1), torch.ones(4, 1)])
def test_cross_entropy_of_a_single_output_is_refused(targets: Tensor) -> None:
    model = nn.Linear(5, 1)
    for measure, options in ((barriers, {}), (perturbations, {"noise": [0.1]})):
        with pytest.raises(ValueError, match=r"one output .* is always 0; targets must .* give a criterion"):
            measure(model, [model.state_dict()] * 2, torch.randn(4, 5), targets, **options)


def test_inputs_that_are_not_finite_are_refused() -> None:
    model, states, inputs, targets = models(2)
    inputs[7, 2] = torch.nan
    measures = [
        lambda: barriers(model, states, inputs, targets),
        lambda: connectivity(model, states, inputs),
        lambda: similarity(model, states, inputs),
    ]
    for measure in measures:
        with pytest.raises(
            ValueError, match="inputs has values that are not finite, first at example 7; remove or fill"
        ):
            measure()


def test_states_of_another_type_are_converted_to_the_models() -> None:
    model, states, inputs, targets = models(2)
    short = [{key: value.bfloat16() for key, value in state.items()} for state in states]
    expected = [{key: value.double() for key, value in state.items()} for state in short]
    for against in ("average", "pairs"):
        found, same = (barriers(model, each, inputs, targets, against=against) for each in (short, expected))
        pd.testing.assert_frame_equal(found, same, check_exact=True)


def test_states_that_would_lose_digits_or_are_another_kind_are_refused() -> None:
    model, states, inputs, targets = models(2)
    cases = [
        (
            copy.deepcopy(model).bfloat16(),
            states,
            "of torch.float64; .* is torch.bfloat16, which would lose",
        ),
        (
            model,
            [{k: v.long() for k, v in s.items()} for s in states],
            "of torch.int64; in the model it is torch.float64",
        ),
    ]
    for net, given, message in cases:
        with pytest.raises(ValueError, match=f"state 0 has '0.weight' {message}"):
            barriers(net, given, inputs, targets)


def test_without_any_target_that_counts_there_is_no_loss() -> None:
    model, states, inputs, targets = models(2)
    ignored, some = torch.full_like(targets, -100), targets.clone()
    some[::2] = -100
    for given, expected in ((ignored, math.nan), (some, None)):
        if expected is None:
            net = copy.deepcopy(model).eval()
            net.load_state_dict(states[0])
            expected = nn.functional.cross_entropy(net(inputs), given).item()
        for tolerance in (None, 0.1):
            table = barriers(
                model, states, inputs, given, groups="full", against=[(0, 1)], ts=(0,), tolerance=tolerance
            )
            assert table["loss"].tolist() == pytest.approx([expected], nan_ok=True)
        still = perturbations(model, states, inputs, given, noise=[0.0])
        assert still["loss"][0] == pytest.approx(expected, nan_ok=True)
        assert math.isnan(still["error"][0]) is math.isnan(expected)


@pytest.mark.parametrize("first", ["subtracts", "relu"])
def test_a_model_that_would_change_the_caller_s_inputs_is_refused(first: str) -> None:
    class Changing(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs.relu_() if first == "relu" else inputs.sub_(0.5))

    model, _, inputs, targets = models(2)
    model, before = Changing(nn.Linear(5, 3).double()), inputs.clone()
    states = [model.state_dict()] * 2
    for measure in (
        lambda: barriers(model, states, inputs, targets),
        lambda: connectivity(model, states, inputs),
        lambda: similarity(model, states, inputs),
        lambda: perturbations(model, states, inputs, targets, noise=[0.1]),
    ):
        with pytest.raises(ValueError, match=r"^Changing changes its inputs in place, .* a copy of its inputs$"):
            measure()
        assert torch.equal(inputs, before)


@pytest.mark.parametrize("decides", [False, True])
def test_measurements_in_inference_mode_are_the_same(decides: bool) -> None:
    class Net(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(-inputs if decides and inputs.sum() > 1e9 else inputs)

    def measured() -> list[pd.DataFrame]:
        model, states, inputs, targets = models(2, lambda: Net(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)))
        return [
            barriers(model, states, inputs, targets, normalisation="recompute", calibration=inputs),
            connectivity(model, states, inputs, against="pairs"),
            similarity(model, states, inputs),
            stitching(model, states, inputs, targets),
            perturbations(model, states, inputs, targets, noise=[0.1]),
            criticality(model, states, states[0], inputs, targets),
        ]

    expected = measured()
    with torch.inference_mode():
        found = measured()
    for one, other in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(one, other)
