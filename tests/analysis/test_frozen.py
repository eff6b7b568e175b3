"""Models with frozen layers: measured as if they required gradients, with the frozen layers left out."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedsim.analysis import Data, Models, barriers
from fedsim.analysis.settings import Settings
from fedsim.analysis.suite import BY_LAYER, MEASURES
from fedsim.models.params import state_of


def fixed_head() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    model[4].requires_grad_(False)
    return model


def biases() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    for module in (model[0], model[1]):
        module.weight.requires_grad_(False)
    return model


class Backbone(nn.Module):
    """A frozen part that runs without a graph, and branches on its data, so that it is no graph of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(6, 5).requires_grad_(False), nn.Linear(5, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            hidden = self.body(inputs)
        return self.fc(hidden.relu() if hidden.sum() > -1e9 else hidden)


@pytest.mark.parametrize("make", [fixed_head, biases, Backbone])
def test_every_measure_is_that_of_the_same_model_with_nothing_frozen(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    free = copy.deepcopy(model)
    states = []
    for _ in range(3):
        for value in state_of(model).values():
            value.copy_(torch.randn(value.shape).abs())
        states.append({key: value.clone() for key, value in model.state_dict().items()})
    free.requires_grad_()
    data = Data(torch.randn(40, 6), torch.arange(40) % 3)
    groups = [{name: name} for name in Models(model, states).layers.names]
    tables = [barriers(Models(each, states), data, groups=groups, against="pairs") for each in (model, free)]
    assert (tables[0]["loss"] - tables[1]["loss"]).abs().max() < 1e-6
    for name in BY_LAYER:
        MEASURES[name].table(Models(model, states), Settings(data, groups=groups))
