import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

import fedsim
from fedsim.analysis import Data, Models, barriers, cka, criticality, peaks, perturbations
from tests.analysis.cases import mlp, models, norm_net

MODEL, STATES, INPUTS, TARGETS = models(2)
FEW = "the model does not take inputs of torch.float64, shape \\(40, 4\\): .*"
Call = Callable[[], Any]


def measured(*arguments: Any, **options: Any) -> Call:
    given = (MODEL, STATES, INPUTS, TARGETS)
    return lambda: barriers(*arguments, *given[len(arguments) :], **options)


WRONG: dict[str, tuple[Call, type[Exception], str]] = {
    # Models and states.
    "a class for a model": (measured(mlp), TypeError, "model is a function; give a torch module"),
    "no list of states": (
        measured(MODEL, STATES[0]),
        TypeError,
        "states is an OrderedDict; give a list of state dicts",
    ),
    "modules for states": (measured(MODEL, [MODEL]), TypeError, r"state 0 is a Sequential; give its state_dict\(\)"),
    "arrays in a state": (
        measured(MODEL, [{key: value.numpy() for key, value in STATES[0].items()}]),
        TypeError,
        "state 0 has '0.weight', an ndarray; each entry must be a tensor",
    ),
    "no states": (lambda: fedsim.barriers(MODEL, None, INPUTS, TARGETS), TypeError, "states is None; give a list"),
    # Examples.
    "no targets": (lambda: barriers(MODEL, STATES, INPUTS), TypeError, "barriers needs targets after a model, states"),
    "arrays": (measured(MODEL, STATES, INPUTS.numpy()), TypeError, "inputs is an ndarray; give a tensor"),
    "a number": (measured(MODEL, STATES, INPUTS, TARGETS[0]), ValueError, "targets is a single number"),
    "too few features": (measured(MODEL, STATES, INPUTS[:, 1:]), ValueError, FEW),
    "too few features for cka": (lambda: cka(MODEL, STATES, INPUTS[:, 1:]), ValueError, FEW),
    "whole numbers": (
        measured(MODEL, STATES, INPUTS.long()),
        ValueError,
        "inputs of torch.int64, .*; the model's weights are torch.float64: convert one of them",
    ),
    "one-hot": (
        measured(MODEL, STATES, INPUTS, one_hot(TARGETS, 3)),
        ValueError,
        r"of torch.int64, shape \(40, 3\): .*; give class indices of int64, shape \[n\], such as targets.argmax",
    ),
    "a column": (
        measured(MODEL, STATES, INPUTS, TARGETS[:, None]),
        ValueError,
        r"targets of torch.int64, shape \(40, 1\): .*, such as targets.squeeze\(1\)",
    ),
    "another type of class": (measured(MODEL, STATES, INPUTS, TARGETS.int()), ValueError, r"such as targets.long\(\)"),
    "a class too many": (
        measured(MODEL, STATES, INPUTS, TARGETS + 1),
        ValueError,
        "targets have the class 3; the model has outputs for classes from 0 to 2",
    ),
    "Data and tensors": (
        lambda: barriers(Models(MODEL, STATES), INPUTS, TARGETS),
        TypeError,
        r"barriers needs data after the models, as Data\(inputs, targets\), not a Tensor",
    ),
    # Losses.
    "a mean loss": (
        measured(criterion=nn.CrossEntropyLoss()),
        ValueError,
        r"the criterion returns \(\) for 2 examples; it must return one loss for each",
    ),
    "a loss for each output": (
        measured(MODEL, STATES, INPUTS, INPUTS[:, :3], criterion=lambda outputs, targets: outputs - targets),
        ValueError,
        r"the criterion returns \(2, 3\) for 2 examples",
    ),
    "a name of a loss": (measured(criterion="mse"), TypeError, "criterion is 'mse'; give a function"),
    # What is measured.
    "one t": (measured(ts=0.5), TypeError, r"ts = 0.5 is a float; give a list of numbers, such as \[0.5\]"),
    "a text of t": (measured(ts=["a"]), TypeError, "ts has 'a', a str; give numbers only"),
    "no t": (measured(ts=[]), ValueError, "ts is empty; give at least one number"),
    "no group": (measured(groups=[]), ValueError, "groups is empty; give at least one"),
    "None for groups": (measured(groups=None), TypeError, "groups = None must be 'layers', a dict"),
    "a list for a group": (measured(groups={"g": ["0", "2"]}), TypeError, r"group 'g' is \['0', '2'\]; give a layer"),
    "one pair": (measured(against=(0, 1)), TypeError, r"pairs have 0; each must be \(base, other\)"),
    "no pair": (measured(against=[]), ValueError, "against is empty; give 'average', 'pairs'"),
    "one reference": (measured(references="chord"), TypeError, r"references = 'chord' must be a list"),
    "a text for a level": (measured(bands="0.95"), TypeError, "bands = '0.95' is a str; give a level such as 0.95"),
    "a text for a tolerance": (measured(tolerance="1"), TypeError, "tolerance = '1' is a str; give it in nats"),
    "weights that overflow": (measured(weights=[1e308] * 2), ValueError, "weights = .*: each, and their sum, must be"),
    "weights that are texts": (measured(weights=["a", 1]), TypeError, "weights has 'a', a str; give numbers only"),
    "no thread": (measured(threads=0), ValueError, "threads = 0 must be at least 1"),
    "another normalisation": (
        measured(normalisation="mean"),
        ValueError,
        "normalisation = 'mean' must be one of interpolate, base, recompute",
    ),
    "another argument": (measured(group="full"), TypeError, "barriers has no argument 'group'; did you mean 'groups'"),
    "quantised weights": (
        measured(MODEL, [{key: value.to(torch.int8) for key, value in STATES[0].items()}]),
        ValueError,
        "state 0 has '0.weight' of torch.int8; in the model it is torch.float64",
    ),
    "a loss in a column": (
        measured(criterion=lambda outputs, targets: outputs[:, :1]),
        ValueError,
        r"the criterion returns \(2, 1\) for 2 examples",
    ),
    "a module for a start": (
        lambda: criticality(MODEL, STATES, MODEL, INPUTS, TARGETS),
        TypeError,
        r"start is a Sequential; give its state_dict\(\)",
    ),
    "one size of noise": (
        lambda: perturbations(MODEL, STATES, INPUTS, TARGETS, noise=0.1),
        TypeError,
        r"noise = 0.1 must be a list of numbers, such as \[0.1\]",
    ),
    "no input for calibration": (measured(calibration=INPUTS[:1]), ValueError, "calibration has 1 inputs; statistics"),
    "another shape for calibration": (
        lambda: barriers(
            norm_net().double(),
            [norm_net().double().state_dict()] * 2,
            INPUTS,
            TARGETS,
            normalisation="recompute",
            calibration=INPUTS[:, 1:],
        ),
        ValueError,
        r"the model does not take the calibration of shape \(40, 4\)",
    ),
    "a table for a measurement": (
        lambda: peaks(barriers(MODEL, STATES, INPUTS, TARGETS)),
        TypeError,
        "peaks takes what fedsim.analysis.measure returns, not a DataFrame",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_one_line_with_its_name_value_and_remedy(wrong: str) -> None:
    call, kind, message = WRONG[wrong]
    with pytest.raises(kind, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_an_error_in_a_users_model_keeps_its_place() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc({}["x"])

    model = Broken()
    with pytest.raises(ValueError, match=r"the model does not take inputs .*: KeyError: 'x' \(test_mistakes.py, line"):
        barriers(model, [model.state_dict()], INPUTS.float(), TARGETS)


def test_an_error_that_examples_do_not_explain_stays_as_it_is() -> None:
    def criterion(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if len(targets) > 2:
            raise RuntimeError("no memory")
        return outputs[:, 0]

    with pytest.raises(RuntimeError, match="no memory"):
        barriers(MODEL, STATES, INPUTS, TARGETS, criterion=criterion)


def test_shares_of_classes_and_padding_are_still_taken() -> None:
    assert barriers(MODEL, STATES, INPUTS, one_hot(TARGETS, 3).double())["loss"].notna().all()
    padded = torch.where(torch.arange(40) < 3, -100, TARGETS)
    assert barriers(MODEL, STATES, INPUTS, padded)["loss"].notna().all()
    assert Data(INPUTS, TARGETS, stratified_from=math.inf).sampling.drawn_from == math.inf
