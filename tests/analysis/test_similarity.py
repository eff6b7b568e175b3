import copy

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from fedsim.analysis.similarity import similarity
from fedsim.models.architectures import MODELS
from tests.analysis.cases import models, norm_net


class Table(nn.Module):
    """Maps each input, an index, to logits of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.rows[inputs]


def test_equal_classes_and_equal_probabilities_are_counted() -> None:
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [40, 1, 0]]).double()
    other = logits.clone()
    # Other class; same class, other probabilities; next to the same; only its small probabilities change, below 1e-16.
    other[0] = torch.tensor([0.0, 9, 0])
    other[1, 1] = 5.0
    other[2] += 1e-6
    other[3, 1] = 3.0
    table = similarity(Table(), [{"rows": logits}, {"rows": other}], torch.arange(4))
    assert table.to_dict("records") == [{"base": 0, "other": 1, "n": 4, "same_class": 0.75, "same_probability": 7 / 12}]


@pytest.mark.parametrize("limit", [0.99e-4, 1.01e-4])
def test_probabilities_are_the_same_below_one_ten_thousandth(limit: float) -> None:
    first = torch.tensor([0.5, 0.3, 0.2]).double().expand(4, 3)
    second = first + torch.tensor([limit, -limit, 0.0])
    table = similarity(Table(), [{"rows": first.log()}, {"rows": second.log()}], torch.arange(4))
    assert table["same_probability"][0] == (1.0 if limit < 1e-4 else 1 / 3)


def test_every_pair_agrees_with_a_slow_implementation() -> None:
    model, states, inputs, _ = models(3, norm_net)
    table = similarity(model, states, inputs)
    assert table[["base", "other"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    nets = []
    for state in states:
        net = copy.deepcopy(model)
        net.load_state_dict(state)
        nets.append(net.eval())
    for _, row in table.iterrows():
        with torch.no_grad():
            first, second = nets[int(row["base"])](inputs), nets[int(row["other"])](inputs)
        assert row["same_class"] == (first.argmax(1) == second.argmax(1)).double().mean()
        assert row["same_probability"] == ((first.softmax(1) - second.softmax(1)).abs() < 1e-4).double().mean()


def test_positions_of_sequences_count_one_by_one() -> None:
    class Sequences(Table):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs).movedim(-1, 1)

    logits = torch.eye(4, 3).double() * 5
    other = logits.clone()
    other[0] = torch.tensor([0.0, 5, 0])
    # Token 0 is 1 of 4 positions; of its 3 probabilities that of class 2 alone is the same.
    inputs = torch.tensor([[0, 1], [2, 2]])
    table = similarity(Sequences(), [{"rows": logits}, {"rows": other}], inputs)
    assert table["n"][0] == 2
    assert table["same_class"][0] == 3 / 4
    assert table["same_probability"][0] == pytest.approx(10 / 12)


def test_threads_change_nothing_and_the_model_stays_as_it_was() -> None:
    model, states, inputs, _ = models(3, norm_net)
    inputs = inputs.repeat(10, 1)
    before, model.training = copy.deepcopy(model.state_dict()), True
    one, five = (similarity(model, states, inputs, threads=threads) for threads in (1, 5))
    pd.testing.assert_frame_equal(one, five, check_exact=True)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_model_is_itself_and_tied_weights_do_not_disturb() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    states = [copy.deepcopy(model.state_dict())] * 2
    table = similarity(model, states, torch.randn(9, 5, generator=torch.Generator().manual_seed(0)))
    assert table["same_class"][0] == table["same_probability"][0] == 1


def test_a_real_network_can_be_compared() -> None:
    nets = [MODELS["resnet18"]((1, 8, 8), 3, norm="batch", width=2) for _ in range(2)]
    table = similarity(nets[0], [net.state_dict() for net in nets], torch.zeros(3, 1, 8, 8), pairs=[(1, 0), (1, 1)])
    assert table[["base", "other"]].to_numpy().tolist() == [[1, 0], [1, 1]]
    assert table["same_probability"][1] == 1


def test_wrong_arguments_are_named() -> None:
    model, states, inputs, _ = models(2)
    with pytest.raises(ValueError, match="there is 1 state"):
        similarity(model, states[:1], inputs)
    with pytest.raises(ValueError, match=r"pair \(0, 5\)"):
        similarity(model, states, inputs, pairs=[(0, 5)])


def test_a_model_whose_outputs_are_no_numbers_is_similar_to_none() -> None:
    model, states, inputs, _ = models(3)
    spoilt = states[1] | {"0.weight": states[1]["0.weight"] * torch.nan}
    table = similarity(model, [states[0], spoilt, states[2]], inputs).set_index(["base", "other"])
    columns = ["same_class", "same_probability"]
    assert table.loc[[(0, 1), (1, 2)], columns].isna().all().all()
    expected = similarity(model, states, inputs).set_index(["base", "other"])
    assert table.loc[[(0, 2)]].equals(expected.loc[[(0, 2)]])


@pytest.mark.parametrize("head", [nn.Linear(5, 1), nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))])
def test_models_of_a_single_output_have_no_classes(head: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"one output for each example, .* two classes or more"):
        similarity(head, [head.state_dict()] * 2, torch.ones(4, 5))
