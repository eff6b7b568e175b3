import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fedsim.analysis.stitching import stitching
from tests.analysis.cases import mean_of, models, norm_net, plain_losses, train_two


@pytest.mark.parametrize("against", ["average", "pairs"])
def test_every_column_agrees_with_a_slow_implementation(against: str) -> None:
    model, states, inputs, targets = models(3, norm_net)
    table = stitching(model, states, inputs, targets, against=against, weights=[1.0, 2.0, 5.0])
    compared = [*states, mean_of(states, [1.0, 2.0, 5.0])]
    assert len(table) == 2 * (3 if against == "average" else 6)
    for _, row in table.iterrows():
        base, other = compared[row["base"]], compared[row["other"]]
        below = {"0": ("0.",), "1": ("0.", "1.")}[row["layer"]]
        stitched = {key: base[key] if key.startswith(below) else value for key, value in other.items()}
        first, second, found = (plain_losses(model, state, inputs, targets) for state in (base, other, stitched))
        assert row["n"] == len(inputs)
        for number, metric in enumerate(("loss", "error")):
            assert row[metric] == pytest.approx(float(found[number].mean()), abs=1e-12)
            ends = float((first[number].mean() + second[number].mean()) / 2)
            assert row[f"{metric}_ends"] == pytest.approx(ends, abs=1e-12)


class Backwards(nn.Module):
    """Its layers are not registered in the order in which it uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.stem = nn.Linear(6, 3), nn.Linear(8, 6), nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(torch.tanh(self.stem(x)))))


def test_layers_are_in_the_order_of_their_use() -> None:
    model, states, inputs, targets = models(2, Backwards)
    table = stitching(model, states, inputs, targets, against=[(1, 0)])
    assert list(table["layer"]) == ["stem", "body"]
    stem = {key: states[1 if key.startswith("stem") else 0][key] for key in states[0]}
    assert table["loss"][0] == pytest.approx(float(plain_losses(model, stem, inputs, targets)[0].mean()), abs=1e-12)


def test_a_model_stitched_to_itself_is_itself() -> None:
    model, states, inputs, targets = models(1)
    table = stitching(model, states * 2, inputs, targets, against="pairs")
    assert len(table) == 2 * 2
    assert (table["loss"] - table["loss_ends"]).abs().max() < 1e-14
    assert (table["error"] == table["error_ends"]).all()


def test_networks_from_one_start_can_be_stitched_and_others_cannot() -> None:
    above = {}
    for same in (True, False):
        trained = train_two(same_start=same)
        table = stitching(trained.model, trained.finals, trained.inputs, trained.targets, against="pairs")
        above[same] = (table["error"] - table["error_ends"]).to_numpy()
    assert above[True].max() < 0.05
    assert above[False].min() > 0.15


def test_threads_change_nothing() -> None:
    model, states, inputs, targets = models(3, norm_net)
    one, two = (stitching(model, states, inputs, targets, threads=threads) for threads in (1, 2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_wrong_arguments_are_named() -> None:
    model, states, inputs, targets = models(2)
    with pytest.raises(ValueError, match=r"pair \(0, 5\)"):
        stitching(model, states, inputs, targets, against=[(0, 5)])
    with pytest.raises(ValueError, match="there is 1 state"):
        stitching(model, states[:1], inputs, targets, against="pairs")
    with pytest.raises(ValueError, match="there are no inputs"):
        stitching(model, states, inputs[:0], targets[:0])
    with pytest.raises(ValueError, match="there are 39 targets for 40 inputs"):
        stitching(model, states, inputs, targets[1:])
