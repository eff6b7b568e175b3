import copy
import math

import pytest
import torch
from torch import nn

from fedsim.analysis import Models
from fedsim.analysis.mixing.mixes import Against
from fedsim.analysis.mixing.paired import difference_columns
from fedsim.analysis.samples.sampling import Sampling
from fedsim.models.params import Params, fit, state_of
from tests.analysis.cases import mean_of, models, norm_net


def with_average(
    model: nn.Module, states: list[Params], weights: list[float] | None = None, against: Against = "average"
) -> list[Params]:
    return Models(model, states, weights).compared(against)


def test_the_average_stands_last_and_keeps_the_integers_of_the_first() -> None:
    model, states, _, _ = models(3, norm_net)
    states[0]["1.num_batches_tracked"] += 7
    result = with_average(model, states, [1, 2, 5])
    assert len(result) == 4
    for given, kept in zip(states, result, strict=False):
        assert all(kept[key] is value for key, value in given.items())
    for key, value in mean_of(states, [1, 2, 5]).items():
        assert torch.allclose(result[-1][key], value, atol=1e-15, rtol=0), key
    assert result[-1]["1.num_batches_tracked"] == 7


def test_a_tied_tensor_stands_once_whether_a_state_names_it_once_or_twice() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    twice, once = copy.deepcopy(model.state_dict()), state_of(model)
    assert [set(state) for state in with_average(model, [twice, once])] == [{"0.weight"}] * 3


def test_what_does_not_fit_is_named() -> None:
    model, states, _, _ = models(2)
    with pytest.raises(ValueError, match="there are no states"):
        with_average(model, [])
    with pytest.raises(ValueError, match="there is 1 state; this needs at least 2"):
        with_average(model, states[:1], against="pairs")
    with pytest.raises(ValueError, match="1 weights for 2 members"):
        with_average(model, states, [1.0])
    with pytest.raises(ValueError, match=r"state 1 lacks the entry '4.bias'"):
        with_average(model, [states[0], {key: value for key, value in states[1].items() if key != "4.bias"}])
    with pytest.raises(ValueError, match="start has the entry 'extra'"):
        fit(model, states[0] | {"extra": torch.zeros(1)}, "start")
    with pytest.raises(ValueError, match=r"start has 0.bias of shape \(3,\) instead of \(8,\)"):
        fit(model, states[0] | {"0.bias": torch.zeros(3)}, "start")


def test_the_standard_error_of_one_example_is_unknown() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    found = difference_columns("x", values, -values, Sampling.freely(3))
    assert (found["loss_x"], found["error_x"]) == (3, -3)
    assert found["loss_x_se"] == found["error_x_se"] == pytest.approx((14 / 2 / 3) ** 0.5)
    assert math.isnan(difference_columns("x", values[:1], values[:1], Sampling.freely(1))["loss_x_se"])
