"""Small models, trained and not, with which measurements are tested."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.models.params import Params

N = 40


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def norm_net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def models(count: int, make: Callable[[], nn.Module] = mlp) -> tuple[nn.Module, list[Params], Tensor, Tensor]:
    """Return a model, states of different random ones in float64 with different running statistics, and data."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = [make().double() for _ in range(count)]
        inputs, targets = torch.randn(N, 5).double(), torch.randint(0, 3, (N,))
    states = [copy.deepcopy(model.state_dict()) for model in made]
    for number, state in enumerate(states):
        for key in state:
            if key.endswith("running_mean"):
                state[key] += 0.3 * number + 0.1
            if key.endswith("running_var"):
                state[key] *= 1.0 + 0.5 * number
    return made[0], states, inputs, targets


def mean_of(states: list[Params], weights: list[float]) -> Params:
    total = sum(weights)
    return {
        key: sum(w * state[key] for w, state in zip(weights, states, strict=True)) / total
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }


def plain_losses(model: nn.Module, state: Params, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and the error of each example: load, evaluate."""
    net = copy.deepcopy(model)
    net.load_state_dict(state)
    net.eval()
    with torch.no_grad():
        outputs = net(inputs)
        return cross_entropy(outputs, targets, reduction="none"), (outputs.argmax(1) != targets).double()


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared distance of each example from its target."""
    return (outputs - targets).square().sum(1)


def with_layers(base: Params, other: Params, layers: set[str], t: float = 1.0) -> Params:
    """Return a model whose entries of some modules are mixed with another's."""
    return {
        key: (1 - t) * value + t * other[key]
        if key.rpartition(".")[0] in layers and value.is_floating_point()
        else value
        for key, value in base.items()
    }


class Quadratic(nn.Module):
    """Three layers of numbers whose concatenation is the output for any input, so that a loss of it is one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(size, 1, bias=False).double() for size in (2, 3, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        whole = torch.cat([layer.weight.flatten() for layer in (self.a, self.b, self.c)])
        return whole.expand(len(inputs), -1)


def points(count: int, seed: int = 0) -> list[Params]:
    """Return random states of `Quadratic`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            f"{name}.weight": torch.randn(1, size, generator=generator, dtype=torch.float64)
            for name, size in (("a", 2), ("b", 3), ("c", 4))
        }
        for _ in range(count)
    ]


def whole(state: Params) -> Tensor:
    return torch.cat([value.flatten() for value in state.values()])


@dataclass(frozen=True)
class Trained:
    """Two networks, each trained on its half of a mixture, with all their checkpoints, and fresh examples."""

    model: nn.Module
    trajectories: list[list[Params]]
    inputs: Tensor
    targets: Tensor

    @property
    def finals(self) -> list[Params]:
        return [trajectory[-1] for trajectory in self.trajectories]


@cache
def train_two(same_start: bool) -> Trained:
    """Train two networks from one initial state, or from two."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        centres = 2.0 * torch.randn(3, 2, 8)
        targets = torch.randint(0, 3, (600,))
        inputs = centres[targets, torch.randint(0, 2, (600,))] + torch.randn(600, 8)
        starts = [
            nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)) for _ in range(2)
        ]
        trajectories = []
        for number, half in enumerate((torch.arange(200), torch.arange(200, 400))):
            net = copy.deepcopy(starts[0 if same_start else number])
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            trajectory = [copy.deepcopy(net.state_dict())]
            for _ in range(10):
                for batch in half[torch.randperm(200)].split(20):
                    optimizer.zero_grad()
                    cross_entropy(net(inputs[batch]), targets[batch]).backward()
                    optimizer.step()
                trajectory.append(copy.deepcopy(net.state_dict()))
            trajectories.append(trajectory)
    return Trained(starts[0], trajectories, inputs[400:], targets[400:])


def row(table: pd.DataFrame, **where: object) -> pd.Series:
    chosen = table
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]
