import importlib

import numpy as np
import pytest
import torch

from fedsim.analysis.distances import distances
from fedsim.models.layers import Layers
from fedsim.models.params import Params
from tests.analysis.cases import Quadratic, mean_of, models, norm_net, points

KINDS = ["layers", "full", "cumulative-shallow", "cumulative-deep", "cumulative-random", "windows:2"]


def vector(state: Params, layers: set[str]) -> np.ndarray:
    """The parameters of some modules, without running statistics."""
    parts = [
        value.numpy().ravel().astype(np.float64)
        for key, value in state.items()
        if key.rpartition(".")[0] in layers and key.rpartition(".")[2] in ("weight", "bias")
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize("against", ["average", "pairs"])
def test_every_column_agrees_with_a_slow_implementation(against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("fedsim.analysis.distances"), "BLOCK", 7)
    model, states, _, _ = models(4, norm_net)
    *states, start = states
    groups = {"some": "0 | 1", "top": "head", "all": "all"}
    layers = {"some": {"0", "1"}, "top": {"3"}, "all": {"0", "1", "3"}}
    table = distances(model, states, groups=groups, against=against, weights=[1, 2, 5], start=start)
    assert len(table) == 3 * (3 if against == "average" else 6)
    compared = [*states, mean_of(states, [1, 2, 5])]
    for _, row in table.iterrows():
        a, b, s = (
            vector(state, layers[row["group"]]) for state in (compared[row["base"]], compared[row["other"]], start)
        )
        expected = {
            "distance": np.linalg.norm(a - b),
            "distance_rms": np.sqrt(np.mean((a - b) ** 2)),
            "distance_relative": np.linalg.norm(a - b) / np.linalg.norm(a),
            "cosine": a @ b / np.linalg.norm(a) / np.linalg.norm(b),
            "base_from_start": np.linalg.norm(a - s),
            "other_from_start": np.linalg.norm(b - s),
            "cosine_from_start": (a - s) @ (b - s) / np.linalg.norm(a - s) / np.linalg.norm(b - s),
        }
        for column, value in expected.items():
            assert row[column] == pytest.approx(value, abs=1e-13), (column, dict(row))


def test_squared_distances_of_layers_add_up_to_those_of_their_groups() -> None:
    model, states, _, _ = models(3)
    table = distances(model, states, groups=KINDS, against="pairs").set_index(["group", "base", "other"])["distance"]
    names = Layers.of(model).names
    for base, other in ((0, 1), (2, 0)):
        squares = [table[name, base, other] ** 2 for name in names]
        for k in range(1, len(names) + 1):
            assert table[f"shallow:{k}", base, other] ** 2 == pytest.approx(sum(squares[:k]), rel=1e-14)
            assert table[f"deep:{k}", base, other] ** 2 == pytest.approx(sum(squares[-k:]), rel=1e-14)
        assert table["full", base, other] == table["deep:3", base, other] == table["random:3", base, other]


def test_a_model_that_is_no_other_has_distance_zero_and_cosine_one() -> None:
    model, states, _, _ = models(2)
    table = distances(model, [states[0], states[0]], groups=KINDS, against="pairs", start=states[1])
    assert (table["distance"] == 0).all()
    assert np.allclose(table[["cosine", "cosine_from_start"]], 1, atol=1e-15)


def test_the_smallest_difference_is_exact() -> None:
    # From inner products, sqrt(2 - 2 + 1e-16) would be anything.
    near = {key: value.clone() for key, value in points(1)[0].items()}
    far = {key: value.clone() for key, value in near.items()}
    near["a.weight"][0, 0], far["a.weight"][0, 0] = 1.0, 1.0 + 2.0**-40
    table = distances(Quadratic(), [near, far], against="pairs", groups="full")
    assert (table["distance"] == 2.0**-40).all()


def test_an_angle_to_nowhere_is_unknown() -> None:
    model, states, _, _ = models(2)
    zero = {key: torch.zeros_like(value) for key, value in states[0].items()}
    table = distances(model, [zero, states[0]], groups=["layers", {"none": "none"}], against="pairs", start=zero)
    forward = table.query("base == 0")
    assert forward[["cosine", "distance_relative", "cosine_from_start"]].isna().all().all()
    nothing = table.query("group == 'none'")
    assert (nothing["distance"] == 0).all()
    assert nothing["distance_rms"].isna().all()


def test_half_precision_is_summed_in_float64() -> None:
    model, _, _, _ = models(1)
    model = model.bfloat16()
    states = [{key: torch.full_like(value, number) for key, value in model.state_dict().items()} for number in (1, 3)]
    table = distances(model, states, groups="full", against="pairs")
    assert (table["distance_rms"] == 2).all()


def test_pairs_are_ordered_and_only_those_given_are_measured() -> None:
    model, states, _, _ = models(3)
    table = distances(model, states, groups="full", against=[(2, 0)])
    assert table[["base", "other"]].to_numpy().tolist() == [[2, 0]]
    assert "base_from_start" not in table
    both = distances(model, states, groups="full", against=[(2, 0), (0, 2)])
    assert both["distance"].nunique() == 1
    assert both["distance_relative"].nunique() == 2


def test_buffers_do_not_count() -> None:
    model, (state,), _, _ = models(1, norm_net)
    other = {key: value + 1 if "running" in key else value for key, value in state.items()}
    assert (distances(model, [state, other], groups=["layers", "full"], against="pairs")["distance"] == 0).all()


def test_wrong_arguments_are_named() -> None:
    model, states, _, _ = models(2)
    with pytest.raises(ValueError, match=r"start lacks the entry '0\.bias'"):
        distances(model, states, start={key: value for key, value in states[0].items() if key != "0.bias"})
    with pytest.raises(ValueError, match="there is 1 state"):
        distances(model, states[:1], against="pairs")
    with pytest.raises(ValueError, match=r"pair \(0, 2\)"):
        distances(model, states, against=[(0, 2)])
    with pytest.raises(ValueError, match="against = 'avrage'"):
        distances(model, states, against="avrage")
