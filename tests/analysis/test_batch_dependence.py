"""Models whose outputs depend on the batch or on random numbers, against loading and evaluating each mixed model."""

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, dropout, relu

from fedsim.alignment.repair.repairing import reset_statistics
from fedsim.analysis import Data, barriers, connectivity
from fedsim.analysis.models import Models
from fedsim.models.params import Params
from fedsim.models.purity import draws_numbers, is_same_in_any_batch
from fedsim.training.evaluation import EVALUATION_BATCH

N = 300
CLASSES = torch.arange(3).repeat_interleave(N // 3)  # sorted, so that no two batches are alike


class OfTheBatch(nn.Module):
    """Normalises by the statistics of whatever batch it is given, or subtracts a share of its mean."""

    def __init__(self, share: float | None = None) -> None:
        super().__init__()
        self.share = share
        self.first, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.out(relu(self.norm(h) if self.share is None else h - self.share * h.mean(0)))


class Dropping(nn.Module):
    """Drops units in evaluation mode too, or in training mode only."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.first, self.norm, self.out, self.always = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), always

    def forward(self, x: Tensor) -> Tensor:
        return self.out(relu(self.norm(dropout(self.first(x), 0.5, self.training or self.always))))


def made(count: int = 2) -> tuple[nn.Module, list[Params], Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [OfTheBatch() for _ in range(count)]
        inputs = torch.randn(N, 6) + 2.0 * torch.randn(3, 6)[CLASSES]
    return nets[0], [net.state_dict() for net in nets], inputs


def halfway(states: list[Params]) -> Params:
    return {key: (value + states[1][key]) / 2 for key, value in states[0].items()}


def outputs(state: Params, inputs: Tensor, size: int = EVALUATION_BATCH) -> Tensor:
    net = OfTheBatch().eval()
    net.load_state_dict(state)
    with torch.no_grad():
        return torch.cat([net(part) for part in inputs.split(size)])


def loss(state: Params, inputs: Tensor, targets: Tensor) -> float:
    return cross_entropy(outputs(state, inputs).double(), targets).item()


def test_a_tolerance_needs_losses_of_single_examples(caplog: pytest.LogCaptureFixture) -> None:
    model, states, inputs = made()
    for precision in ("float32", "bfloat16"):
        table = barriers(
            model, states, inputs, CLASSES, groups="full", against="pairs", tolerance=0.5, precision=precision
        )
        expected = [loss(state, inputs, CLASSES) for state in (states[0], halfway(states), states[1])]
        assert table["loss"].tolist() == pytest.approx([*expected, *expected[::-1]], abs=1e-5)
        assert table["n"].tolist() == [N] * 6
    lines = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1
    assert "OfTheBatch on all examples, whatever the tolerance" in lines[0].getMessage()


def test_a_small_dependence_on_the_batch_counts_too() -> None:
    _, states, inputs = made()
    table = barriers(OfTheBatch(0.02), states, inputs, CLASSES, groups="full", against="pairs", tolerance=0.5)
    exact = barriers(OfTheBatch(0.02), states, inputs, CLASSES, groups="full", against="pairs")
    assert table["n"].tolist() == [N] * 6
    assert table["loss"].tolist() == exact["loss"].tolist()


def test_losses_do_not_depend_on_what_was_measured_before() -> None:
    model, states, inputs = made()
    models, mixed = Models(model, states), halfway(states)
    for n in (10, N):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
        few, targets = inputs[order], CLASSES[order]
        found = barriers(models, Data(few, targets), groups="full", against=[(0, 1)], ts=(0.5,))["loss"][0]
        assert found == pytest.approx(loss(mixed, few, targets), abs=1e-5)


@pytest.mark.parametrize("memory", [2**30, 2**14])
def test_features_are_of_the_batches_that_losses_are_of(memory: int) -> None:
    model, states, inputs = made()
    first, second, mixed = (outputs(state, inputs) for state in (*states, halfway(states)))
    found = connectivity(model, states, inputs, against="pairs", max_memory=memory, threads=2).query("layer == 'out'")
    expected = cosine_similarity(mixed, (first + second) / 2).double().mean().item()
    assert found["cosine"].item() == pytest.approx(expected, abs=1e-6)


def test_a_head_of_zeros_does_not_hide_that_outputs_depend_on_the_batch() -> None:
    model, states, inputs = made()
    zero = states[0] | {key: torch.zeros_like(states[0][key]) for key in ("out.weight", "out.bias")}
    table = barriers(model, [zero, states[1]], inputs, CLASSES, groups="full", against="pairs", tolerance=0.5)
    assert table["loss"][1] == pytest.approx(loss(halfway([zero, states[1]]), inputs, CLASSES), abs=1e-5)
    assert table["n"].tolist() == [N] * 6


@pytest.mark.parametrize("always", [True, False])
def test_recomputed_statistics_and_losses_of_equal_models_are_equal_though_they_draw(always: bool) -> None:
    _, _, inputs = made()
    model = Dropping(always)
    state, before = model.state_dict(), torch.get_rng_state()
    other = {key: value.clone() for key, value in state.items()}
    for threads in (1, 3):
        models = Models(model, [state, other], normalisation="recompute", calibration=inputs, threads=threads)
        table = barriers(models, Data(inputs, CLASSES), groups=["layers", "full"], against="pairs")
        assert np.ptp(table["loss"]) < 1e-6
        assert table["loss_mean_ends"].abs().max() < 1e-6
    assert torch.equal(before, torch.get_rng_state())


class Sometimes(Dropping):
    """Does not always call the same layers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if len(x) > 5 else self.first(x) @ self.first.weight)


@pytest.mark.filterwarnings("ignore:.*jit:FutureWarning")
@pytest.mark.parametrize("make", [Dropping, Sometimes, lambda always: torch.jit.script(Dropping(always))])
def test_features_of_equal_models_are_equal_though_they_draw(make: Callable[[bool], nn.Module]) -> None:
    model, inputs = make(True), made()[2]
    state = model.state_dict()
    table = connectivity(model, [state, {key: value.clone() for key, value in state.items()}], inputs, threads=3)
    assert table["cosine"].tolist() == pytest.approx([1.0] * len(table), abs=1e-6)
    assert table["cosine_ends"].tolist() == pytest.approx([1.0] * len(table), abs=1e-6)


def test_dropout_in_place_leaves_the_inputs_that_statistics_are_recomputed_from() -> None:
    inputs, losses = made()[2], []
    given = inputs.clone()
    for in_place in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Dropout(inplace=in_place), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        states = [net.state_dict()] * 2
        models = Models(net, states, normalisation="recompute", calibration=given)
        losses += barriers(models, Data(inputs, CLASSES), groups="full", against="pairs")["loss"].tolist()
        reset_statistics(net, states[0], given)
        assert torch.equal(given, inputs)
    assert losses == pytest.approx(losses[:1] * len(losses), abs=1e-6)


def test_what_models_depend_on_is_found() -> None:
    inputs = made()[2][:5]
    for model, same, draws, draws_in_training in [
        (OfTheBatch(), False, False, False),
        (OfTheBatch(share=0.01), False, False, False),
        (nn.Linear(6, 3).bfloat16(), True, False, False),
        (Dropping(always=True), False, True, True),
        (Dropping(always=False), True, False, True),
        (nn.Linear(6, 3), True, False, False),
    ]:
        inputs = inputs.to(next(model.parameters()).dtype)
        assert is_same_in_any_batch(model, inputs) is same
        assert draws_numbers(model, inputs) is draws
        assert draws_numbers(model, inputs, training=True) is draws_in_training
