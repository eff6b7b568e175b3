"""Barriers are predicted from the ends of a path: exactly for polynomials, at two gradients and two products a row."""

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.functional import cross_entropy

from fedsim.analysis import Data, Models, prediction
from fedsim.results.report.drawing.prediction import correlations, maps
from fedsim.training.evaluation import EVALUATION_BATCH
from tests.analysis.cases import Quadratic, models, points, whole

NOTHING = torch.zeros(4, 1, dtype=torch.float64)


@pytest.mark.parametrize(("degree", "is_exact", "slopes_are"), [(2, 1, 1), (3, 1, 1), (4, 1, 0), (5, 1, 0), (6, 0, 0)])
def test_polynomials_up_to_degree_five_are_predicted_exactly(degree: int, is_exact: bool, slopes_are: bool) -> None:
    def power(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs + 0.3).pow(degree).sum(1)

    data, groups = Data(NOTHING, NOTHING, power), ["layers", "full"]
    table = prediction(Models(Quadratic(), points(2)), data, groups=groups, against=[(0, 1)])
    assert list(table["layer"]) == ["a", "b", "c", "full"]
    assert (table["loss_predicted"].to_numpy() == pytest.approx(table["loss_swap_ends"].to_numpy())) == is_exact
    assert (
        table["loss_predicted_slopes"].to_numpy() == pytest.approx(table["loss_swap_ends"].to_numpy())
    ) == slopes_are
    if degree == 2:
        difference = whole(points(2)[1]) - whole(points(2)[0])
        assert table["loss_predicted"].iloc[-1] == pytest.approx(-float(difference.square().sum()) / 4)
        assert table["curvature"].iloc[-1] == pytest.approx(2 * float(difference.square().sum()))


class Attention(nn.Module):
    """Attention whose fast implementation has no second derivative, tied weights, and a layer that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.unused = nn.Linear(5, 4), nn.Linear(2, 2)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.embed(inputs)[:, None].tanh() * torch.tensor([[1.0], [0.5]], dtype=inputs.dtype)
        x = nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


def test_derivatives_are_those_along_the_path_in_batches_and_with_attention() -> None:
    model, states, _, _ = models(3, Attention)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(130, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (130,), generator=generator)
    groups = [{name: name for name in ("embed", "unused", "attend.out_proj")}]
    table = prediction(model, states, inputs, targets, groups=groups, against=[(2, -1)], weights=[1.0, 2.0, 5.0])
    average = {key: (states[0][key] + 2 * states[1][key] + 5 * states[2][key]) / 8 for key in states[0]}
    for row in table.to_dict("records"):
        start, end = states[2], average
        keys = {key for key in start if key.rpartition(".")[0] == row["layer"]}

        def loss(t: Tensor, start: dict = start, end: dict = end, keys: set = keys) -> Tensor:
            mixed = {key: value + t * (end[key] - value) if key in keys else value for key, value in start.items()}
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                return cross_entropy(functional_call(model, mixed, (inputs,)), targets)

        slopes, bends = (
            [float(each(torch.tensor(t, dtype=torch.float64))) for t in (0.0, 1.0)]
            for each in (grad(loss), grad(grad(loss)))
        )
        assert row["curvature"] == pytest.approx(sum(bends) / 2, abs=1e-12), row["layer"]
        assert row["loss_predicted"] == pytest.approx(5 / 32 * (slopes[0] - slopes[1]) + sum(bends) / 64, abs=1e-12)
        middle = float(loss(torch.tensor(0.5))) - (float(loss(torch.tensor(0.0))) + float(loss(torch.tensor(1.0)))) / 2
        assert row["loss_swap_ends"] == pytest.approx(middle, abs=1e-12)
    expected = table[["loss_predicted", "loss_swap_ends"]].corr(method="spearman").iloc[0, 1]
    assert table["rank_correlation"].to_numpy() == pytest.approx(expected)


def test_a_row_costs_at_most_two_gradients_and_two_products(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, plain = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: calls.append(1) or plain(*args, **kwargs))
    model, states, inputs, targets = models(3)
    table = prediction(model, states, inputs, targets, against="pairs", measured=False)
    assert "loss_swap_ends" not in table
    bases, rows = 3, len(table)
    assert len(calls) == bases + 3 * rows  # one gradient for each base, and at the other end one and a product


def test_predictions_are_drawn_next_to_the_barriers_and_ranks_by_round() -> None:
    model, states, inputs, targets = models(3)
    table = prediction(model, states, inputs, targets)
    rounds = pd.concat([table.assign(round=1), table.assign(round=4, loss_predicted=0.5)])
    measured, predicted = maps(rounds).tables.values()
    assert predicted.loc["0", 4] == pytest.approx(0.5)
    assert measured.loc["0", 1] == pytest.approx(table.loc[table["layer"] == "0", "loss_swap_ends"].mean())
    (curve,) = correlations(rounds).panels[""]
    assert curve.points.loc[1, "value"] == pytest.approx(table.groupby("base")["rank_correlation"].first().mean())


def test_no_batch_holds_a_single_example() -> None:
    class Dropping(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs).squeeze(0)  # the only row

    model, states, inputs, targets = models(2, lambda: Dropping(5, 3))
    rows = torch.arange(EVALUATION_BATCH + 1) % len(inputs)
    pair = {"against": [(0, 1)], "measured": False}
    found = prediction(model, states, inputs[rows], targets[rows], **pair)
    expected = prediction(nn.Linear(5, 3).double(), states, inputs[rows], targets[rows], **pair)
    pd.testing.assert_frame_equal(found, expected)
