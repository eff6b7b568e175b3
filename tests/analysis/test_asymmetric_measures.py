"""What is measured of asymmetric networks: as of the plain weights that they compute with, whatever their type."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

from fedsim.alignment.repair.variance import correct_variances
from fedsim.analysis import (
    Data,
    Models,
    barriers,
    connectivity,
    distances,
    layer_path,
    prediction,
    robustness,
    spectra,
    stitching,
)
from fedsim.analysis.settings import Settings
from fedsim.analysis.suite import MEASURES
from fedsim.models.asymmetry import fixed_entries
from fedsim.models.layers import describe_
from fedsim.models.params import Params, lerp, state_of
from tests.models.test_asymmetry import INPUTS, SIGMA, TARGETS, mlp, plain, states


def test_measurements_are_those_of_models_with_plain_weights() -> None:
    model, own = mlp(), states(3)
    theirs = [{k: v.clone() for k, v in state_of(plain(state)).items()} for state in own]
    given = (INPUTS, TARGETS)
    for measure, arguments in (
        (barriers, given), (spectra, ()), (stitching, given), (prediction, given), (connectivity, (INPUTS,)),
    ):  # fmt: skip
        found, expected = measure(model, own, *arguments), measure(plain(own[0]), theirs, *arguments)
        numbers = found.select_dtypes("number")
        np.testing.assert_allclose(numbers, expected[numbers.columns], rtol=1e-9, atol=1e-11)
    exchanged = connectivity(model, own, INPUTS, against="pairs").set_index("layer")["commutativity"]
    assert np.isfinite(exchanged.drop("fc1")).all()  # which takes the model's inputs
    apart = distances(model, own)["distance"], distances(plain(own[0]), theirs)["distance"]
    np.testing.assert_allclose(*apart, rtol=1e-12)


def test_a_frozen_layer_with_fixed_entries_is_measured_and_stays_as_it_is() -> None:
    model, standard = mlp(), plain(states()[0])
    for each in (model, standard):
        describe_(each, INPUTS, freeze="fc1")
    before, (_, other) = {key: value.clone() for key, value in model.state_dict().items()}, states()
    own = [state_of(model), {key: other[key] for key in state_of(model)}]
    theirs = [state_of(standard), {key: plain(other).state_dict()[key] for key in state_of(standard)}]
    found = connectivity(model, own, INPUTS, against="pairs")
    pd.testing.assert_frame_equal(found, connectivity(standard, theirs, INPUTS, against="pairs"), rtol=1e-9)
    assert list(found["layer"]) == ["fc2", "fc3"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_random_directions_move_what_trains_as_far_as_the_models_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Params] = []
    module = sys.modules["fedsim.analysis.robustness"]
    perturbed = vars(module)["_perturbed"]
    monkeypatch.setattr(module, "_perturbed", lambda *args: seen.extend(f := perturbed(*args)) or f)
    model, own = mlp(), states()
    robustness(model, own, INPUTS, TARGETS, against="pairs", draws=1)
    for state, (base, other) in zip(seen, ((0, 1), (1, 0)), strict=False):
        for key, fixed in fixed_entries(model).items():
            assert not bool(state[key][fixed.free == 0].count_nonzero())
            bias = key.partition(".")[0] + ".bias"
            moved, apart = (
                sum(float((each[k] - own[base][k]).square().sum()) for k in (key, bias)) for each in (state, own[other])
            )
            assert moved == pytest.approx(apart)


def test_a_path_and_a_correction_of_variances_leave_fixed_entries_alone() -> None:
    model, own = mlp(), states()
    mean = lerp(*own, 0.5)
    corrected = correct_variances(model, mean, own, epsilon=0.0)
    for key, fixed in fixed_entries(model).items():
        free = fixed.free > 0
        assert not bool(corrected[key][~free].count_nonzero())
        goal = sum(state[key][free].var(correction=0) for state in own) / 2
        torch.testing.assert_close(corrected[key][free].var(correction=0), goal)
    walked = layer_path(model, own, INPUTS, TARGETS, step=0.5, train_steps=1)
    assert np.isfinite(walked.select_dtypes("number")).all(axis=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_measures_take_models_with_gates_of_either_type(dtype: torch.dtype) -> None:
    model, inputs = mlp(SIGMA).to(dtype), INPUTS.to(dtype)
    own = [{key: value.to(dtype) for key, value in state.items()} for state in states(3, asymmetry=SIGMA)]
    settings = Settings(Data(inputs, TARGETS), start=own[0])
    for measure in MEASURES.values():
        assert len(measure.table(Models(model, own), settings))
    found = connectivity(model, own, inputs).set_index("layer")
    assert found.loc[["fc1", "fc2"], "additivity"].notna().all()  # gates bend
    assert found.loc["fc3", "additivity"].isna().all()
