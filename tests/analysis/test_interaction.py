from itertools import combinations

import pandas as pd
import pytest
import torch
from torch import Tensor

from fedsim.analysis.interaction import interaction
from tests.analysis.cases import (
    Quadratic,
    mean_of,
    models,
    norm_net,
    plain_losses,
    points,
    whole,
    with_layers,
)

VALUES = ["loss_interaction", "loss_interaction_se", "error_interaction", "error_interaction_se"]


@pytest.mark.parametrize(("against", "t"), [("average", 1.0), ("pairs", 0.3)])
def test_a_quadratic_loss_gives_the_closed_form(against: str, t: float) -> None:
    # (w - g)' H (w - g) / 2: the interaction of two layers is delta_k' H_kl delta_l.
    *states, goal = points(4)
    root = torch.randn(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hessian = root @ root.T
    weights = [1.0, 2.0, 5.0]

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) @ hessian * (outputs - targets)).sum(1) / 2

    table = interaction(
        Quadratic(),
        states,
        torch.zeros(2, 1),
        whole(goal).expand(2, -1),
        against=against,
        weights=weights,
        t=t,
        pairwise=True,
        criterion=criterion,
    )
    compared = [*states, mean_of(states, weights)]
    where = {"a": slice(0, 2), "b": slice(2, 5), "c": slice(5, 9)}
    for (base, other), rows in table.groupby(["base", "other"]):
        delta = t * (whole(compared[other]) - whole(compared[base]))
        expected = {
            (one, two): float(delta[where[one]] @ hessian[where[one], where[two]] @ delta[where[two]])
            for one, two in combinations("abc", 2)
        }
        expected["", ""] = sum(expected.values())
        found = rows.set_index(["first", "second"])["loss_interaction"]
        assert set(found.index) == set(expected)
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, abs=1e-11)
        assert (rows["loss_interaction_se"] < 1e-12).all()


def test_every_column_agrees_with_a_slow_implementation() -> None:
    model, states, inputs, targets = models(3, norm_net)
    table = interaction(model, states, inputs, targets, against=[(2, 0)], pairwise=True)
    assert (table["t"] == 0.5).all()

    def change(*layers: str) -> Tensor:
        moved = with_layers(states[2], states[0], set(layers), 0.5)
        after = torch.stack(plain_losses(model, moved, inputs, targets))
        return after - torch.stack(plain_losses(model, states[2], inputs, targets))

    names = ("0", "1", "3")
    expected = {("", ""): change(*names) - sum(change(name) for name in names)}
    expected |= {(one, two): change(one, two) - change(one) - change(two) for one, two in combinations(names, 2)}
    assert table[["first", "second"]].to_numpy().tolist() == [list(key) for key in expected]
    for (_, row), values in zip(table.iterrows(), expected.values(), strict=True):
        assert row["n"] == len(targets)
        for metric, value in zip(("loss", "error"), values, strict=True):
            assert row[f"{metric}_interaction"] == pytest.approx(float(value.mean()), abs=1e-12)
            assert row[f"{metric}_interaction_se"] == pytest.approx(float(value.std()) / len(value) ** 0.5, abs=1e-12)


def test_layers_that_add_up_do_not_interact() -> None:
    # The squared distance is a sum over layers.
    first, second, goal = points(3)
    table = interaction(
        Quadratic(),
        [first, second],
        torch.zeros(1, 1),
        whole(goal).expand(1, -1),
        pairwise=True,
        criterion=lambda outputs, targets: (outputs - targets).square().sum(1),
    )
    assert table["loss_interaction"].abs().max() < 1e-12
    assert table["loss_interaction_se"].isna().all()


def test_the_one_dimensional_example_interacts_as_much_as_it_should() -> None:
    # (w1 w2 - 1)^2 at w = (a, 1/a), halfway to (1/a, a), s = (a + 1/a) / 2: (s^2 - 1)^2 - (s/a - 1)^2 - (a s - 1)^2.
    a = 0.1
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)).double()
    states = [
        {"0.weight": torch.tensor([[w]], dtype=torch.float64), "1.weight": torch.tensor([[1 / w]], dtype=torch.float64)}
        for w in (a, 1 / a)
    ]
    one = torch.ones(1, 1).double()
    table = interaction(
        model,
        states,
        one,
        one,
        pairwise=True,
        criterion=lambda outputs, targets: (outputs - targets).square().sum(1),
    )
    s = (a + 1 / a) / 2
    expected = (s**2 - 1) ** 2 - (s / a - 1) ** 2 - (a * s - 1) ** 2
    assert expected == pytest.approx(600.3725 - 2450.25 - 0.245025)
    assert table["loss_interaction"].to_numpy() == pytest.approx([expected] * 4)


def test_identical_models_and_a_step_of_length_zero_do_not_interact() -> None:
    model, states, inputs, targets = models(2)
    still = interaction(model, [states[0]] * 2, inputs, targets, pairwise=True)
    assert still[VALUES].abs().max().max() < 1e-14
    assert (interaction(model, states, inputs, targets, against="pairs", t=0.0)[VALUES] == 0).all().all()


def test_threads_change_nothing() -> None:
    model, states, inputs, targets = models(3)
    one, two = (interaction(model, states, inputs, targets, pairwise=True, threads=n) for n in (1, 3))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_wrong_arguments_are_named() -> None:
    model, states, inputs, targets = models(2)
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        interaction(model, states, inputs, targets, t=1.5)
    with pytest.raises(ValueError, match="there is 1 state"):
        interaction(model, states[:1], inputs, targets, against="pairs")


def test_statistics_are_recomputed_on_what_is_given_for_it() -> None:
    model, states, inputs, targets = models(3, norm_net)

    def measure(**options: torch.Tensor) -> pd.DataFrame:
        return interaction(model, states, inputs, targets, normalisation="recompute", **options)

    first, second = measure(calibration=inputs[:20]), measure(calibration=inputs[20:])
    assert first["loss_interaction"].notna().all()
    assert (first["loss_interaction"] != second["loss_interaction"]).any()
    with pytest.raises(ValueError, match="calibration"):
        measure()
