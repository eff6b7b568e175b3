import numpy as np
import pandas as pd
import pytest
import torch

from fedsim.analysis.directions import random_directions as directions
from fedsim.analysis.robustness import robustness
from fedsim.models.params import Params
from fedsim.seeds import rng
from tests.analysis.cases import (
    Quadratic,
    mean_of,
    models,
    norm_net,
    plain_losses,
    points,
    squared,
    train_two,
    whole,
    with_layers,
)

KEYS = ["group", "base", "other", "t", "direction"]


def noisy(base: Params, other: Params, layers: set[str], t: float, seed: int, draw: int) -> Params:
    """The definition, slowly: parameters of each layer moved by noise of the norm of their difference."""
    result = dict(base)
    for layer in layers:
        keys = [key for key in base if key.startswith(f"{layer}.") and key.rpartition(".")[2] in ("weight", "bias")]
        length = sum(float((other[key] - base[key]).square().sum()) for key in keys) ** 0.5
        noise = rng(seed, "robustness", draw, layer).standard_normal(sum(base[key].numel() for key in keys))
        moved = torch.from_numpy(t * length * noise / np.linalg.norm(noise))
        for key in keys:
            own, moved = moved[: base[key].numel()], moved[base[key].numel() :]
            result[key] = base[key] + own.reshape(base[key].shape)
    return result


@pytest.mark.parametrize("against", ["average", "pairs"])
def test_every_column_agrees_with_a_slow_implementation(against: str) -> None:
    model, states, inputs, targets = models(3, norm_net)
    weights, layers = [1.0, 2.0, 5.0], {"some": {"0", "1"}, "top": {"3"}}
    table = robustness(
        model,
        states,
        inputs,
        targets,
        groups={"some": "0 | 1", "top": "head"},
        against=against,
        weights=weights,
        ts=[0.25, 1.0],
        draws=3,
        seed=4,
    )
    assert len(table) == 2 * 2 * 2 * (3 if against == "average" else 6)
    compared = [*states, mean_of(states, weights)]
    for _, row in table.iterrows():
        base, other, moved = compared[row["base"]], compared[row["other"]], layers[row["group"]]
        if row["direction"] == "average":
            found = [with_layers(base, other, moved, row["t"])]
        else:
            found = [noisy(base, other, moved, row["t"], 4, draw) for draw in range(3)]
        assert row["draws"] == len(found)
        values = [plain_losses(model, state, inputs, targets) for state in found]
        own = plain_losses(model, base, inputs, targets)
        for number, metric in enumerate(("loss", "error")):
            means = [float(value[number].mean()) for value in values]
            assert row[metric] == pytest.approx(np.mean(means), abs=1e-12)
            assert row[f"{metric}_own_base"] == pytest.approx(np.mean(means) - float(own[number].mean()), abs=1e-12)
            spread = np.std(means, ddof=1) if len(means) > 1 else np.nan
            assert row[f"{metric}_spread"] == pytest.approx(spread, abs=1e-12, nan_ok=True)


def test_where_all_directions_are_alike_random_ones_cost_what_the_average_does() -> None:
    # ||w - base||^2 is t^2 times the squared distance in any direction.
    states = points(3)
    table = robustness(
        Quadratic(),
        states,
        torch.zeros(1, 1),
        whole(states[0]).expand(1, -1),
        groups=["layers", "full"],
        against=[(0, 2)],
        criterion=squared,
    )
    for _, row in table.iterrows():
        keys = [f"{row['group']}.weight"] if row["group"] != "full" else list(states[0])
        distance = sum(float((states[0][key] - states[2][key]).square().sum()) for key in keys)
        assert row["loss"] == pytest.approx(row["t"] ** 2 * distance, rel=1e-12)
        assert row["direction"] == "average" or row["loss_spread"] < 1e-12


def test_numbers_do_not_depend_on_what_else_is_asked_for() -> None:
    model, states, inputs, targets = models(3)
    options = {"against": "pairs", "draws": 2}
    every = robustness(model, states, inputs, targets, groups=["layers", "full"], ts=(0.3, 1.0), **options)
    few = robustness(model, states, inputs, targets, groups={"2": "2"}, ts=(1.0,), **options | {"against": [(2, 1)]})
    same = every.merge(few[KEYS], on=KEYS)
    assert len(same) == 2
    pd.testing.assert_frame_equal(same, few)


def test_passes_that_save_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, states, inputs, targets = models(2)
    once = robustness(model, states, inputs, targets, draws=4)
    monkeypatch.setattr(directions, "PASS_BYTES", 1)
    assert [list(each) for each in directions.passes(3, 10)] == [[0], [1], [2]]
    pd.testing.assert_frame_equal(once, robustness(model, states, inputs, targets, draws=4, threads=2))


def test_identical_models_do_not_move() -> None:
    model, states, inputs, targets = models(1)
    table = robustness(model, states * 2, inputs, targets, groups=["layers", "full"], draws=2)
    assert table[["loss_own_base", "error_own_base"]].abs().max().max() < 1e-14


def test_another_model_is_a_worse_direction_than_a_random_one() -> None:
    # Networks from different initial states: METHODS of arXiv 2307.06966 find it for most layers.
    trained = train_two(same_start=False)
    table = robustness(
        trained.model, trained.finals, trained.inputs, trained.targets, against="pairs", ts=(1.0,), groups="layers"
    )
    cost = table.pivot_table(index=["group", "base"], columns="direction", values="loss_own_base")
    assert (cost["average"] > cost["random"]).mean() > 0.8
    assert cost["average"].mean() > 1.5 * cost["random"].mean()


def test_wrong_arguments_are_named() -> None:
    model, states, inputs, targets = models(2)
    for options, message in (
        ({"draws": 0}, "draws = 0 must be at least 1"),
        ({"ts": [2.0]}, "must be from 0 to 1"),
        ({"groups": "layer"}, "groups has 'layer'"),
    ):
        with pytest.raises(ValueError, match=message):
            robustness(model, states, inputs, targets, **options)
    with pytest.raises(ValueError, match="there is 1 state"):
        robustness(model, states[:1], inputs, targets, against="pairs")


def test_statistics_are_recomputed_on_what_is_given_for_it() -> None:
    model, states, inputs, targets = models(3, norm_net)

    def measure(**options: torch.Tensor) -> pd.DataFrame:
        return robustness(model, states, inputs, targets, normalisation="recompute", draws=1, **options)

    first, second = measure(calibration=inputs[:20]), measure(calibration=inputs[20:])
    assert first["loss"].notna().all()
    assert (first["loss"] != second["loss"]).any()
    with pytest.raises(ValueError, match="calibration"):
        measure()
