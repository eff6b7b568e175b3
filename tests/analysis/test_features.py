import copy
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fedsim.analysis.connectivity import connectivity
from fedsim.analysis.features import features
from fedsim.analysis.models import Models
from tests.analysis.cases import mean_of, models
from tests.analysis.slow_connectivity import KEYS, cosines, made
from tests.models.test_architectures import ZOO, batch, build


class Undecided(nn.Module):
    """Cannot be traced; changes what its layer gives in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu_(self.first(x)))
        return self.third(torch.relu_(x)) if float(x.detach().sum()) < 1e9 else x


def test_a_model_that_cannot_be_traced_has_the_features_of_its_modules(caplog: pytest.LogCaptureFixture) -> None:
    plain, states, inputs, _ = models(3)
    model = Undecided().double()
    names = dict(zip("024", ("first", "second", "third"), strict=True))
    renamed = [{f"{names[key[0]]}{key[1:]}": value for key, value in state.items()} for state in states]
    with caplog.at_level(logging.INFO):
        table = connectivity(model, renamed, inputs, ts=(0.3,))
    assert "features of Undecided are what its layers' modules give" in caplog.text
    expected = connectivity(plain, states, inputs, ts=(0.3,))
    assert list(table["layer"].unique()) == list(names.values())
    assert table["additivity"].isna().all()
    columns = ["commutativity", "weight_distance", "feature_distance"]
    np.testing.assert_allclose(table[columns], expected[columns], rtol=1e-10)
    last = [each[each["layer"] == name].drop(columns="layer") for each, name in ((table, "third"), (expected, "4"))]
    np.testing.assert_allclose(*last, rtol=1e-8)
    # Before the activation, in spite of what is done to it afterwards.
    first = table.query("layer == 'first' and base == 0").iloc[0]
    average = mean_of(states, [1.0] * 3)
    a, b = (inputs @ state["0.weight"].T + state["0.bias"] for state in (states[0], average))
    assert first["cosine_ends"] == pytest.approx(cosines(a, b).mean(), rel=1e-12)
    assert first["cosine"] == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("name", ["vit", "gpt", "char-lstm", "mobilenet"])
def test_networks_of_other_kinds_have_features(name: str) -> None:
    model, inputs = build(name), batch(ZOO[name].shape, 7)
    taken = Models(model, [model.state_dict()]).features(inputs, [0])
    names = [site.name for site in taken.sites]
    assert len(set(names)) == len(names)
    assert {"vit": "encoder.layers.encoder_layer_1", "gpt": "h.1", "char-lstm": "lstm.1", "mobilenet": "features.18.0"}[
        name
    ] in names
    assert names[-1] == ZOO[name][2]
    (last,) = taken.map(lambda x: [values[0].features for _, values in taken.walk(x)][-1])
    torch.testing.assert_close(last, model(inputs), rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_used_again_has_rows_of_its_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.inner(torch.relu(self.inner(x))))

    model = Twice().double()
    inputs = models(1)[2]
    table = connectivity(model, [model.state_dict()], inputs)
    assert list(table["layer"].unique()) == ["inner:1", "inner", "head"]


def test_threads_change_nothing_and_the_model_stays_as_it_was() -> None:
    model, states, inputs = made("resnet", 3)
    inputs = inputs.repeat(20, 1, 1, 1)
    before, model.training = copy.deepcopy(model.state_dict()), True
    one, three = (connectivity(model, states, inputs, threads=threads) for threads in (1, 3))
    pd.testing.assert_frame_equal(one, three, check_exact=True)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, states, inputs = made("strange", 2)
    whole = connectivity(model, states, inputs)
    monkeypatch.setattr(features, "CPU_TILE", 4)
    parts = connectivity(model, states, inputs)
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-11)
    assert not whole["cosine_std"].equals(parts["cosine_std"])


def test_numbers_do_not_depend_on_what_else_is_asked_for() -> None:
    model, states, inputs = made("mlp", 3)
    every = connectivity(model, states, inputs, against="pairs", ts=(0.0, 0.3, 1.0))
    assert every.groupby("layer")[["base", "other"]].size().eq(9).all()
    few = connectivity(model, states, inputs, against=[(1, 2), (0, 2)], ts=(0.3,))
    same = every.merge(few[KEYS], on=KEYS)
    assert len(same) == len(few) == 6
    pd.testing.assert_frame_equal(same, few.sort_values(["layer", "base"]).reset_index(drop=True))
    # From the other end.
    back = connectivity(model, states, inputs, against=[(2, 1)], ts=(0.7,)).drop(columns=KEYS)
    np.testing.assert_allclose(back, few.query("base == 1").drop(columns=KEYS), rtol=1e-9)


def test_a_model_of_zeros_commutes_with_none() -> None:
    model, states, inputs = made("mlp", 2)
    zeros = {key: torch.zeros_like(value) for key, value in states[0].items()}
    for dtype in (torch.float32, torch.float64):
        pair = [{key: value.to(dtype) for key, value in state.items()} for state in (zeros, states[1])]
        table = connectivity(model.to(dtype), pair, inputs.to(dtype), against="pairs")
        # W_A H_B + W_B H_A is 0, computed from two terms that cancel.
        assert np.isinf(table["commutativity"].dropna()).all()


def test_no_pairs_are_no_rows() -> None:
    model, states, inputs = made("mlp", 2)
    every, none = (connectivity(model, states, inputs, against=against) for against in ("pairs", []))
    assert len(none) == 0
    assert list(none.columns) == list(every.columns)


def test_wrong_arguments_are_named() -> None:
    model, states, inputs = made("mlp", 2)
    for options, message in (
        ({"against": [(0, 5)]}, r"pair \(0, 5\)"),
        ({"ts": [2.0]}, "must be from 0 to 1"),
        ({"ts": ()}, "ts is empty; give at least one"),
        ({"additivity_ts": [-1.0]}, "additivity_ts has -1.0"),
        ({"weights": [1.0]}, "1 weights for 2 members"),
        ({"against": "all"}, "against = 'all'"),
    ):
        with pytest.raises(ValueError, match=message):
            connectivity(model, states, inputs, **options)
    with pytest.raises(ValueError, match="there is 1 state"):
        connectivity(model, states[:1], inputs, against="pairs")
    with pytest.raises(ValueError, match="there are no inputs; give at least one"):
        connectivity(model, states, inputs[:0])
