"""A model gives logits: what ends in a sigmoid or softmax is noticed before it trains."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.config import Config
from fedsim.data.dataset import Dataset, Examples
from fedsim.errors import ConfigError
from fedsim.experiment import run as experiment
from fedsim.federation.federation import federation_of

HERE = "tests.federation.test_last_function"
ENDS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "softmax": lambda: nn.Sequential(nn.Softmax(1), nn.Flatten()),
    "log-softmax": lambda: nn.LogSoftmax(1),
    "tanh": nn.Tanh,
}


def build(shape: tuple[int, ...], classes: int, end: str) -> nn.Module:
    """Return a linear model with a last function."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes), ENDS[end]())


def data(labels: int = 1) -> Dataset:
    """Return examples with a yes or no, or with several."""
    inputs = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    targets = (inputs > 0).float()[:, :labels].squeeze(1)
    return Dataset("signs", Examples(inputs[:40], targets[:40]), Examples(inputs[40:], targets[40:]), ("a", "b"))


@pytest.fixture
def config(tiny: Callable[..., Config]) -> Callable[..., Config]:
    """Build a config of a model with a last function."""

    def build(end: str, **changes: Any) -> Config:
        return tiny(model={"name": f"{HERE}:build", "end": end}, **changes)

    return build


@pytest.mark.parametrize(("labels", "task"), [(1, "binary"), (2, "multi-label")])
def test_a_sigmoid_is_refused_as_each_of_its_values_would_count_as_yes(
    labels: int, task: str, config: Callable[..., Config]
) -> None:
    options: dict[str, Any] = {"data": {"name": f"{HERE}:data", "labels": labels, "task": task}}
    options["partition"] = {"scheme": "iid"}
    with pytest.raises(
        ConfigError, match=f"build' ends in a sigmoid, and the task '{task}' takes logits, of which all"
    ):
        federation_of(config("sigmoid", **options))
    federation_of(config("tanh", **options))


def nll(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of probabilities."""
    return -outputs.gather(1, targets[:, None])[:, 0].log()


def test_a_softmax_before_a_loss_of_probabilities_is_right(
    config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        federation_of(config("softmax", loss={"name": f"{HERE}:nll"}))
    assert "softmax" not in caplog.text


class Energy(nn.Module):
    """Returns the slope of a linear function's square."""

    def __init__(self, classes: int, remedy: bool) -> None:
        super().__init__()
        self.flat, self.fc, self.remedy = nn.Flatten(), nn.LazyLinear(classes), remedy

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False) if self.remedy else nullcontext(), torch.enable_grad():
            outputs = self.fc(self.flat(x.clone()))
            return torch.autograd.grad((outputs**2).sum(), outputs, create_graph=True)[0]


def energy(shape: tuple[int, ...], classes: int, remedy: bool) -> nn.Module:
    """Return a model that computes gradients in its forward pass."""
    return Energy(classes, remedy)


def test_a_model_that_could_not_be_evaluated_is_refused_before_it_trains(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"evaluation has no gradients: if forward computes some, let it do so in"):
        federation_of(tiny(model={"name": f"{HERE}:energy", "remedy": False}))
    experiment.prepare(tiny(model={"name": f"{HERE}:energy", "remedy": True}))


@pytest.mark.parametrize("end", ENDS)
def test_a_softmax_before_the_cross_entropy_is_reported(
    end: str, config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        federation_of(config(end))
    assert ("build' ends in a softmax, and the cross-entropy takes another one" in caplog.text) == (end == "softmax")
