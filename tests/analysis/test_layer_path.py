"""A path from model to model moves one layer after the other, and ends at the second model exactly."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.analysis import Data, layer_path
from fedsim.models.layers import Layers
from fedsim.models.params import Params
from tests.analysis.cases import mlp, models, norm_net, plain_losses, train_two


def loss(model: nn.Module, state: Params, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float(plain_losses(model, state, inputs, targets)[0].mean())


@pytest.mark.parametrize("make", [mlp, norm_net])
def test_without_training_one_step_swaps_a_layer_and_small_ones_interpolate_it(make: object) -> None:
    model, (a, b), inputs, targets = models(2, make)  # type: ignore[arg-type]
    swapped = layer_path(model, [a, b], inputs, targets, step=math.inf, train_steps=0)
    names = list(dict.fromkeys(key.rpartition(".")[0] for key in a))
    assert list(swapped["layer"]) == [names[0], *names]
    assert list(swapped["arrived"]) == list(range(len(names) + 1))
    for count, row in enumerate(swapped.to_dict("records")):
        mixed = {key: (b if key.rpartition(".")[0] in names[:count] else a)[key] for key in a}
        assert row["loss"] == pytest.approx(loss(model, mixed, inputs, targets))
    assert swapped["distance"].iloc[-1] == 0
    first = [key for key in a if key.startswith("0.")]
    whole = math.sqrt(sum(float((a[key] - b[key]).square().sum()) for key in first))
    some = layer_path(
        model, [a, b], inputs, targets, step=whole / 4, train_steps=0, keeps_variance=False, every=1, max_ticks=3
    )
    for t, row in zip((0.0, 0.25, 0.5, 0.75), some.to_dict("records"), strict=True):
        mixed = {key: (1 - t) * a[key] + t * b[key] if key in first else a[key] for key in a}
        assert row["loss"] == pytest.approx(loss(model, mixed, inputs, targets))


def test_equal_models_have_a_path_of_length_0_and_convex_ones_no_barrier() -> None:
    model, (a, *_), inputs, targets = models(1)
    (same,) = layer_path(model, [a, a], inputs, targets).to_dict("records")
    assert (same["arrived"], same["distance"]) == (len(Layers.of(model).names), 0)
    model, (a, b), inputs, targets = models(2, lambda: nn.Linear(5, 3))
    walked = layer_path(
        model, [a, b], inputs, targets, step=0.1, train_steps=1, lr=0.05, batch_size=40, keeps_variance=False, every=1
    )
    assert walked["distance"].iloc[-1] == 0
    assert walked["loss"].max() <= max(walked["loss"].iloc[[0, -1]]) + 1e-12


def test_training_and_kept_variance_lower_the_path_between_independent_models() -> None:
    trained = train_two(same_start=False)
    ends, data = trained.finals, (trained.inputs, trained.targets)
    options = {"step": 0.2, "lr": 0.02, "every": 5, "batch_size": 20}
    peaks = {
        steps: layer_path(trained.model, ends, *data, train_steps=steps, **options)["loss"].max() for steps in (0, 5)
    }
    ts = np.linspace(0, 1, 11)
    straight = max(
        loss(trained.model, {key: torch.lerp(ends[0][key], ends[1][key], t) for key in ends[0]}, *data) for t in ts
    )
    assert peaks[5] < min(peaks[0], straight)
    again = layer_path(trained.model, ends, *data, train_steps=5, **options)["loss"].max()
    assert again == peaks[5]
    assert peaks[5] < layer_path(trained.model, ends, *data, keeps_variance=False, **options)["loss"].max()


def test_a_walk_whose_training_diverges_is_refused() -> None:
    model, ends, inputs, targets = models(2)
    with pytest.raises(
        ValueError, match=r"after \d+ ticks the loss is not finite: training diverged with lr = 1e\+200;"
    ):
        layer_path(model, ends, inputs, targets, lr=1e200, every=2, max_ticks=50, keeps_variance=False)
    ends[0] = {key: value * math.nan for key, value in ends[0].items()}
    with pytest.raises(ValueError, match="the start has no finite loss"):
        layer_path(model, ends, inputs, targets)


def test_the_last_tick_is_evaluated_even_if_nothing_has_arrived() -> None:
    model, ends, inputs, targets = models(2)
    walked = layer_path(model, ends, inputs, targets, step=1e-3, train_steps=0, max_ticks=7, every=5)
    assert list(walked["tick"]) == [0, 5, 7]
    assert list(walked["arrived"]) == [0, 0, 0]


def test_recurrent_layers_are_trained_without_cudnn_which_has_no_gradients_in_eval_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                used.append(torch.backends.cudnn.enabled)
            return self.head(self.cell(inputs[:, None])[0][:, -1])

    used: list[bool] = []
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    model, ends, inputs, targets = models(2, Recurrent)
    used.clear()
    layer_path(model, ends, inputs, targets, step=math.inf, train_steps=2)
    assert used == [False, False]  # after the first layer has arrived
    assert torch.backends.cudnn.enabled


def test_the_variance_on_the_way_is_that_of_the_ends_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (a, b), inputs, targets = models(2, lambda: nn.Linear(5, 3))
    entries: list[Params] = []
    plain = nn.Linear.forward
    monkeypatch.setattr(
        nn.Linear,
        "forward",
        lambda self, x: entries.append({"weight": self.weight.detach().clone(), "bias": self.bias}) or plain(self, x),
    )
    b = {key: 3 * value for key, value in b.items()}
    whole = float((a["weight"] - b["weight"]).norm())
    layer_path(model, [a, b], inputs, targets, step=whole / 2, train_steps=0, every=1, max_ticks=1)
    found = entries[-1]["weight"].var(correction=0)
    ends = [state["weight"].var(correction=0) for state in (a, b)]
    assert float(found) == pytest.approx(float(sum(ends) / 2), rel=0.01)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"order": ["0"]}, r"order = \['0'\] must hold each layer once: 0, 2, 4"),
        ({"step": 0.0}, "step = 0 and share = 0 never move"),
        ({"batch_size": 0}, "batch_size = 0 must be a whole number of at least 1"),
        ({"batch_size": 1.5}, r"batch_size = 1\.5 must be a whole number of at least 1"),
        ({"train_steps": -1}, "train_steps = -1 must be a whole number of at least 0"),
        ({"train_steps": 1.5}, r"train_steps = 1\.5 must be a whole number of at least 0"),
        ({"lr": -1.0}, r"lr = -1\.0 must be at least 0"),
    ],
)
def test_a_wrong_argument_is_named(options: dict[str, object], problem: str) -> None:
    model, states, inputs, targets = models(3)
    with pytest.raises(ValueError, match=problem):
        layer_path(model, states[:2], inputs, targets, **options)
    for n, rule in ((3, "there are 3 targets for 40 inputs"), (0, "there are no inputs")):
        with pytest.raises(ValueError, match=f"train: {rule}"):
            layer_path(model, states[:2], inputs, targets, max_ticks=1, train=Data(inputs[: 40 * (n > 0)], targets[:n]))
    with pytest.raises(ValueError, match="there are 3 states; a path has two ends"):
        layer_path(model, states, inputs, targets)
