"""Measurements of models as people bring them, against loading and evaluating each mixed model."""

import logging
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.analysis import Data, barriers, cka, connectivity, criticality, distances, spectra, stitching
from fedsim.analysis.directions.random_directions import entries_of, vector_of
from fedsim.analysis.models import Models
from fedsim.analysis.perturbations import perturbations
from fedsim.analysis.similarity import similarity
from fedsim.models.copies import copy_of
from fedsim.models.layers import Layers
from fedsim.models.params import Params, first_keys
from tests.models.foreign import FOREIGN, foreign, inputs_of

WEIGHTS = [1.0, 2.0, 5.0]
# Those that are no functions of single examples, or that cannot be followed.
WHOLE = {
    "u-net": "control flow",
    "gpt-2": "control flow",
    "masks": "cannot be traced",
    "stateful": "keeps something from one call to the next",
    "remembers": "keeps something from one call to the next",
    "counts": "keeps something from one call to the next",
    "branches": "decides by the values of tensors",
    "branches inside": "decides by the values of tensors",
    "experts": "decides by the values of tensors",
    "bfloat16 inside": "half precision",
    "scripted": "compiled",
    "late clamp": "in place",
    "of the batch": "depend on the others",
    "from the dict": "other outputs with other weights",
}
every_model = pytest.mark.parametrize("name", FOREIGN)


def numbers(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def states_of(model: nn.Module, count: int = 3) -> list[Params]:
    """State dicts far from each other; variances stay positive and tied tensors tied."""
    generator = torch.Generator().manual_seed(0)
    states = []
    for number in range(count):
        state = {key: value.detach().clone() for key, value in model.state_dict().items()}
        for key, value in state.items():
            if numbers(value):
                noise = torch.randn(value.shape, generator=generator).to(value.dtype) * 0.2 * number
                state[key] = value * (1 + noise.abs()) if "var" in key else value + noise * value.abs().mean()
        states.append({key: state[first] for key, first in first_keys(model).items()})
    return states


def mean_of(states: list[Params]) -> Params:
    wide = {key: torch.promote_types(value.dtype, torch.float64) for key, value in states[0].items()}
    return {
        key: (sum(w * s[key].to(wide[key]) for w, s in zip(WEIGHTS, states, strict=True)) / sum(WEIGHTS)).to(
            value.dtype
        )
        if numbers(value)
        else value
        for key, value in states[0].items()
    }


def targets_of(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        outputs = copy_of(model)(inputs)
    generator = torch.Generator().manual_seed(2)
    return torch.randint(outputs.shape[1], (len(outputs), *outputs.shape[2:]), generator=generator)


def plainly(model: nn.Module, state: Params, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Load a state into a copy and evaluate it: loss and error."""
    net = copy_of(model)
    net.load_state_dict(state)
    with torch.no_grad():
        outputs = net.eval()(inputs)
    return cross_entropy(outputs, targets).item(), (outputs.argmax(1) != targets).double().mean().item()


@pytest.mark.slow
@every_model
def test_barriers_are_those_of_loading_and_evaluating_each_mixed_model(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs = copy_of(foreign(name)), inputs_of(FOREIGN[name].shape)
    caplog.set_level(logging.INFO)
    states, targets, layers = states_of(model), targets_of(model, inputs), Layers.of(model)
    names = layers.names
    grown = {f"shallow:{k}": names[:k] for k in range(1, len(names) + 1)}
    moved = {name: (name,) for name in names} | grown | {"full": names}
    asked = [
        (["layers", "full"], "average", [0.3, 1.0]),
        (["cumulative-shallow", "full"], [(0, 1), (2, 0)], [0.75]),
    ]
    for groups, against, ts in asked:
        table = barriers(model, states, inputs, targets, groups=groups, against=against, ts=ts, weights=WEIGHTS)
        for row in table.to_dict("records"):
            end = mean_of(states) if row["other"] == -1 else states[row["other"]]
            mixed = {
                key: (1 - row["t"]) * value + row["t"] * end[key] if layers.find(key) in moved[row["group"]] else value
                for key, value in states[row["base"]].items()
            }
            loss, error = plainly(model, mixed, inputs, targets)
            assert row["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-5), row
            assert row["error"] == pytest.approx(error, abs=1.01 / targets.numel()), row
    # Why it is evaluated as a whole is said once.
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (name in WHOLE), said
    assert all(type(model).__name__ in line and WHOLE[name] in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WHOLE, "dicts", "fourier", "hooks", "lists", "options", "old weight_norm", "pruned"])
def test_every_measure_takes_every_model(name: str) -> None:
    model, inputs = foreign(name), inputs_of(FOREIGN[name].shape)
    states, targets = states_of(model), targets_of(model, inputs)
    models = Models(model, states, WEIGHTS)
    linear = connectivity(models, inputs, against=[(0, 1)], ts=(0.0, 0.5))
    assert linear["cosine"].between(-1.001, 1.001).all()
    assert np.allclose(linear[linear["t"] == 0]["cosine"], 1, atol=1e-5)
    assert {"cka", "layer"} <= set(cka(models, inputs).columns)
    own = [plainly(model, state, inputs, targets) for state in states]
    stitched = stitching(models, Data(inputs, targets), against=[(1, 0)])
    for row in stitched.to_dict("records"):
        assert row["loss_ends"] == pytest.approx((own[row["base"]][0] + own[row["other"]][0]) / 2, rel=1e-5, abs=1e-5)
    reset = criticality(model, states[1:], states[0], inputs, targets, groups="full")
    assert reset["loss"].tolist() == pytest.approx([own[0][0]] * 2, rel=1e-5, abs=1e-5)
    same = similarity(model, [states[0], states[0], states[1]], inputs)
    assert same["same_class"][0] == 1
    if inputs.is_floating_point():
        still = perturbations(model, states, inputs, targets, noise=[0.0])
        assert still["loss"].tolist() == pytest.approx([loss for loss, _ in own], rel=1e-5, abs=1e-5)


class Noisy(nn.Module):
    """Draws random numbers in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.dropout(self.fc(x), 0.5))


def test_every_mix_of_a_random_model_draws_the_same_numbers(caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = Noisy(), inputs_of((6,), 200)
    caplog.set_level(logging.INFO)
    states, targets, before = states_of(model, 2), torch.arange(200) % 4, torch.get_rng_state()
    one, three = (
        barriers(model, states, inputs, targets, against="pairs", ts=[0.0, 0.5], threads=threads) for threads in (1, 3)
    )
    pd.testing.assert_frame_equal(one, three, check_exact=True)
    assert (one[one["t"] == 0]["loss_own_base"] == 0).all()
    assert (one[one["t"] == 0.5]["loss_own_base"] != 0).all()
    alike = connectivity(model, [states[0]] * 2, inputs, against="pairs")
    assert np.allclose(alike["cosine_ends"], 1, atol=1e-6)
    assert torch.equal(before, torch.get_rng_state())
    assert "draws random numbers" in caplog.text


class Rarely(nn.Module):
    """Does something else with examples that are rare, inside of an operation that nobody can look into."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(6))

        def forward(self, x: Tensor) -> Tensor:
            x = x @ self.weight
            return torch.where(x.max() > 3.0, -x, x)  # by the largest of the batch

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = self.Inner(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x))


def test_what_only_shows_on_the_data_is_found_on_the_data(caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = Rarely(), inputs_of((6,), 40).clamp(max=1.0)
    inputs[20] = 9.0
    states, targets = states_of(model, 2), torch.arange(40) % 4
    caplog.set_level(logging.INFO)
    table = barriers(model, states, inputs, targets, groups="full", against=[(0, 1)], ts=[0.0, 0.5])
    assert table["loss"][0] == pytest.approx(plainly(model, states[0], inputs, targets)[0], rel=1e-5)
    assert "gives other losses on these data" in caplog.text


def test_a_model_is_checked_on_different_inputs_even_if_there_is_one() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x - x.mean(0))

    model, inputs = Centred(), inputs_of((6,), 1)
    assert Models(model, [model.state_dict()]).mixed.operations(inputs) is None


@pytest.mark.parametrize("n", [1, 126, 251])
def test_a_model_that_drops_dimensions_of_length_one_never_gets_a_single_example(n: int) -> None:
    for name in ("squeezed", "bfloat16 inside"):
        model, inputs = foreign(name), inputs_of(FOREIGN[name].shape, n)
        targets = torch.arange(n) % 4
        table = barriers(model, states_of(model, 2), inputs, targets, groups="full", ts=[0.5])
        assert table["loss"].map(math.isfinite).all()


def test_nothing_that_a_model_keeps_gets_from_one_measurement_into_another_or_into_the_model() -> None:
    model, inputs = foreign("stateful"), inputs_of(FOREIGN["stateful"].shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (barriers(model, states_of(model), inputs, targets_of(model, inputs)) for _ in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert model.hidden is None
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_complex_parameters_count_by_their_real_and_imaginary_parts() -> None:
    model = foreign("fourier")
    states = states_of(model, 2)
    apart = (states[0]["spectral"] - states[1]["spectral"]).numpy()
    table = distances(model, states, against="pairs", groups={"one": "spectral"})
    assert table["distance"][0] == pytest.approx(np.linalg.norm(apart), rel=1e-6)
    assert table["distance_rms"][0] == pytest.approx(np.linalg.norm(apart) / math.sqrt(2 * apart.size), rel=1e-6)
    own = spectra(model, states).query("layer == 'spectral' and base == 1")
    singular = np.linalg.svd(states[1]["spectral"].numpy().reshape(3, -1), compute_uv=False)
    assert own["spectral_norm"].iloc[0] == pytest.approx(singular[0], rel=1e-5)
    layer = Layers.of(model)["spectral"]
    vector = vector_of(states[1], layer)
    assert torch.equal(entries_of(vector, layer, states[0])["spectral"], states[1]["spectral"])
