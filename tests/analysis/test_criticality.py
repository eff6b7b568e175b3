import numpy as np
import pandas as pd
import pytest
import torch

from fedsim.analysis.criticality import criticality
from tests.analysis.cases import Quadratic, models, norm_net, plain_losses, points, train_two, whole, with_layers

GROUPS = {"some": "0 | 1", "top": "head"}
LAYERS = {"some": {"0", "1"}, "top": {"3"}}


def test_every_column_agrees_with_a_slow_implementation() -> None:
    model, (*states, start), inputs, targets = models(3, norm_net)
    table = criticality(model, states, start, inputs, targets, groups=GROUPS)
    assert len(table) == 2 * 2
    for _, row in table.iterrows():
        base = states[row["base"]]
        after = plain_losses(model, with_layers(base, start, LAYERS[row["group"]]), inputs, targets)
        before = plain_losses(model, base, inputs, targets)
        for metric, values, own in zip(("loss", "error"), after, before, strict=True):
            difference = (values - own).numpy()
            assert row[metric] == pytest.approx(values.mean().item(), abs=1e-12)
            assert row[f"{metric}_own_base"] == pytest.approx(difference.mean(), abs=1e-12)
            se = difference.std(ddof=1) / np.sqrt(len(targets))
            assert row[f"{metric}_own_base_se"] == pytest.approx(se, abs=1e-12)


def test_running_statistics_go_back_with_their_layer_or_stay() -> None:
    model, (state, start), inputs, targets = models(2, norm_net)
    only = {key: start[key] if "running" in key else value for key, value in state.items()}
    changes = {
        policy: criticality(model, [state], only, inputs, targets, groups={"g": "1"}, normalisation=policy)
        for policy in ("interpolate", "base")
    }
    assert changes["base"]["loss_own_base"][0] == 0
    assert changes["interpolate"]["loss_own_base"][0] != 0


def test_going_back_to_where_one_is_costs_nothing() -> None:
    model, states, inputs, targets = models(1)
    table = criticality(model, states, states[0], inputs, targets, groups=["layers", "full"])
    assert (table[["loss_own_base", "error_own_base", "loss_own_base_se"]] == 0).all().all()


def test_a_quadratic_loss_gives_the_closed_form() -> None:
    state, start, goal = points(3)
    table = criticality(
        Quadratic(),
        [state],
        start,
        whole(goal).expand(2, -1),
        whole(goal).expand(2, -1),
        criterion=lambda outputs, targets: (outputs - targets).square().sum(1),
    )
    for _, row in table.iterrows():
        key = f"{row['group']}.weight"
        expected = (start[key] - goal[key]).square().sum() - (state[key] - goal[key]).square().sum()
        assert row["loss_own_base"] == pytest.approx(float(expected), abs=1e-12)
        assert np.isnan(row["error"])


def test_layers_that_were_trained_are_critical() -> None:
    trained = train_two(same_start=True)
    start = trained.trajectories[0][0]
    table = criticality(
        trained.model, trained.finals, start, trained.inputs, trained.targets, groups=["layers", "full"]
    )
    assert (table["loss_own_base"] > 4 * table["loss_own_base_se"]).all()
    full = table.query("group == 'full'")
    assert full["loss"].nunique() == 1


def test_a_start_that_does_not_fit_is_named() -> None:
    model, states, inputs, targets = models(2)
    with pytest.raises(ValueError, match=r"start lacks the entry '2\.weight'"):
        criticality(model, states, {k: v for k, v in states[0].items() if k != "2.weight"}, inputs, targets)
    with pytest.raises(ValueError, match="there are no states"):
        criticality(model, [], states[0], inputs, targets)


def test_statistics_are_recomputed_on_what_is_given_for_it() -> None:
    model, states, inputs, targets = models(3, norm_net)

    def measure(**options: torch.Tensor) -> pd.DataFrame:
        return criticality(
            model, states[:2], states[2], inputs, targets, groups="layers", normalisation="recompute", **options
        )

    first, second = measure(calibration=inputs[:20]), measure(calibration=inputs[20:])
    assert first["loss"].notna().all()
    assert (first["loss"] != second["loss"]).any()
    with pytest.raises(ValueError, match="calibration"):
        measure()
